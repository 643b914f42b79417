//! The processes of a run: proxies with a name server each, and backends that note every span.
//!
//! Each replica asks a name server of its own, so that a change can reach the replicas at different times.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use spanring::{
    endpoint::Endpoint,
    lifecycle::Tasks,
    ring::{Algorithm, Table},
    tools::sink::{Sink, SinkConfig},
};
use tempfile::TempDir;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, sleep_until},
};

use super::{
    exporter::Balancer,
    plan::{Plan, Ring, Step},
    proxy::{Place, Program},
};
use crate::{
    harness::{Process, Ready, free_addresses, on_free_ports, until},
    nameserver::{NameServer, loopback},
};

/// The name whose addresses are the backends.
const NAME: &str = "collectors.test.";

/// How long a backend that is told to end goes on with the calls that it has.
const GRACE: Duration = Duration::from_secs(2);

/// A backend. It may end and start again.
pub(crate) struct Backend {
    /// Its own name.
    name: String,
    address: SocketAddr,
    /// The tasks of its running instance.
    tasks: Option<Tasks>,
    /// The index of its last instance.
    instance: usize,
}

/// An instance of a backend.
#[derive(Debug)]
pub(crate) struct Instance {
    /// The file with all spans that it accepted.
    pub(crate) journal: PathBuf,
    /// When it began to end, since 1970. It takes nothing new from then on.
    pub(crate) stopped: Option<Duration>,
}

/// A replica of the proxy.
struct Replica {
    names: NameServer,
    place: Place,
    process: Option<Process>,
}

/// What runs.
pub(crate) struct World {
    program: Program,
    has_names: bool,
    /// How a new replica places traces.
    algorithm: Algorithm,
    port: u16,
    backends: Vec<Backend>,
    /// All instances of backends in the order of their start.
    pub(crate) instances: Vec<Instance>,
    replicas: Vec<Replica>,
    pub(crate) balancer: Balancer,
    runtime: Handle,
    dir: TempDir,
}

/// Something to do at some time.
enum Act<'p> {
    Do(&'p Step),
    /// Lets one replica know of a step.
    Tell(usize, &'p Step),
}

impl World {
    /// Starts the backends and the replicas of a plan.
    pub(crate) fn start(program: &Program, plan: &Plan, runtime: &Handle) -> Result<Self> {
        let [free] = free_addresses()?;
        let mut world = Self {
            program: program.clone(),
            has_names: plan.has_names,
            algorithm: plan.algorithm,
            port: free.port(),
            backends: Vec::new(),
            instances: Vec::new(),
            replicas: Vec::new(),
            balancer: Balancer::default(),
            runtime: runtime.clone(),
            dir: tempfile::tempdir()?,
        };
        for backend in 0..plan.backends {
            world.start_backend(backend)?;
        }
        for _ in 0..plan.replicas {
            world.add_replica()?;
        }
        Ok(world)
    }

    /// The identities of backends in a pool.
    pub(crate) fn identities(&self, backends: &BTreeSet<usize>) -> Vec<String> {
        let chosen = backends.iter().filter_map(|n| self.backends.get(*n));
        let identity = |backend: &Backend| match self.has_names {
            true => format!("{}:{}", backend.name, self.port),
            false => backend.address.to_string(),
        };
        chosen.map(identity).collect()
    }

    /// The table of a ring. `tables` has those that were made before.
    pub(crate) fn table<'r>(&self, tables: &mut HashMap<&'r Ring, Arc<Table>>, ring: &'r Ring) -> Result<Arc<Table>> {
        if let Some(table) = tables.get(ring) {
            return Ok(Arc::clone(table));
        }
        let endpoint = |identity: String| Endpoint::new(identity, None);
        let mut endpoints: Vec<Endpoint> = self.identities(&ring.backends).into_iter().map(endpoint).collect();
        endpoints.sort();
        let table = Arc::new(Table::of(1, ring.algorithm, &endpoints.into())?);
        tables.insert(ring, Arc::clone(&table));
        Ok(table)
    }

    /// Does what is planned, each step at its time after `beginning`. Replicas learn of changes one after the other,
    /// the last one `skew` after the first.
    pub(crate) fn play(&mut self, plan: &Plan, skew: Duration, beginning: Instant) -> Result<()> {
        let mut acts: Vec<(Duration, Act<'_>)> = Vec::new();
        for (at, step) in &plan.steps {
            if !matches!(step, Step::List(_) | Step::Rename(_) | Step::Reload(_)) {
                acts.push((*at, Act::Do(step)));
                continue;
            }
            for replica in 0..plan.replicas {
                let others = u32::try_from(plan.replicas - 1)?.max(1);
                let share = u32::try_from(replica)? * skew / others;
                acts.push((*at + share, Act::Tell(replica, step)));
            }
        }
        acts.sort_by_key(|(at, _)| *at);
        for (at, act) in acts {
            self.runtime.block_on(async { sleep_until(beginning + at).await });
            match act {
                Act::Do(step) => self.act(step)?,
                Act::Tell(replica, step) => self.tell(replica, step)?,
            }
        }
        Ok(())
    }

    fn act(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Start(backend) => self.start_backend(*backend),
            Step::Stop(backend) => {
                if let Some(tasks) = self.end(*backend) {
                    tasks.drain();
                    let of_rest = Tasks::new();
                    let _guard = self.runtime.enter();
                    drop(of_rest.spawn(async move {
                        sleep(GRACE).await;
                        tasks.stop();
                    }));
                }
                Ok(())
            }
            Step::Kill(backend) => {
                if let Some(tasks) = self.end(*backend) {
                    tasks.stop();
                }
                Ok(())
            }
            Step::RestartReplica(replica) => self.restart(*replica),
            Step::KillReplica(replica) => {
                self.balancer.set_ready(*replica, false);
                drop(self.replicas.get_mut(*replica).and_then(|replica| replica.process.take()));
                Ok(())
            }
            Step::List(_) | Step::Rename(_) | Step::Reload(_) => Ok(()),
        }
    }

    /// Takes the tasks of a backend's running instance, and notes that it ends.
    fn end(&mut self, backend: usize) -> Option<Tasks> {
        let backend = self.backends.get_mut(backend)?;
        let tasks = backend.tasks.take()?;
        if let Some(instance) = self.instances.get_mut(backend.instance) {
            instance.stopped = SystemTime::now().duration_since(UNIX_EPOCH).ok();
        }
        Some(tasks)
    }

    /// Lets one replica know of a step.
    fn tell(&mut self, replica: usize, step: &Step) -> Result<()> {
        if let Step::Reload(algorithm) = step {
            return self.reload(replica, *algorithm);
        }
        let names = &self.replicas.get(replica).context("no such replica")?.names;
        match step {
            Step::List(backends) => self.list(names, backends),
            Step::Rename(backend) => {
                let backend = self.backends.get(*backend).context("no such backend")?;
                names.resolves(&backend.name, &[backend.address.ip()]);
            }
            _ => {}
        }
        Ok(())
    }

    /// Lets one replica read its configuration again, which has another algorithm now.
    fn reload(&mut self, replica: usize, algorithm: Algorithm) -> Result<()> {
        let replica = self.replicas.get_mut(replica).context("no such replica")?;
        replica.place.algorithm = algorithm;
        fs::write(&replica.place.config, self.program.config(&replica.place).context("it has no configuration")?)?;
        replica.process.as_ref().map_or(Ok(()), |process| process.signal("HUP"))
    }

    fn list(&self, names: &NameServer, backends: &BTreeSet<usize>) {
        let chosen = backends.iter().filter_map(|n| self.backends.get(*n));
        let addresses: Vec<IpAddr> = chosen.map(|backend| backend.address.ip()).collect();
        names.resolves(NAME, &addresses);
    }

    /// Starts an instance of a backend, at a new address.
    fn start_backend(&mut self, n: usize) -> Result<()> {
        let tasks = Tasks::new();
        let journal = self.dir.path().join(format!("instance-{}.journal", self.instances.len()));
        let config = SinkConfig {
            grpc: (loopback(), self.port).into(),
            journal: Some(journal.clone()),
            ..SinkConfig::default()
        };
        let sink = self.runtime.block_on(Sink::start(config, &tasks)).context("cannot start a backend")?;
        let instance = self.instances.len();
        self.instances.push(Instance { journal, stopped: None });
        let name = format!("collector-{n}.test.");
        let started = Backend { name, address: sink.addr, tasks: Some(tasks), instance };
        match self.backends.get_mut(n) {
            Some(backend) => *backend = started,
            None => {
                ensure!(n == self.backends.len(), "backend {n} starts before others");
                self.backends.push(started);
            }
        }
        Ok(())
    }

    fn add_replica(&mut self) -> Result<()> {
        let names = NameServer::start()?.context("a name server for processes needs root")?;
        let all: BTreeSet<usize> = (0..self.backends.len()).collect();
        self.list(&names, &all);
        for backend in &self.backends {
            names.resolves(&backend.name, &[backend.address.ip()]);
        }
        let config = self.dir.path().join(format!("replica-{}.yaml", self.replicas.len()));
        let backends = self.has_names.then(|| self.identities(&all));
        let place = |[listen, page]: [SocketAddr; 2]| Place {
            listen,
            page,
            name: NAME,
            port: self.port,
            backends: backends.clone(),
            algorithm: self.algorithm,
            config: config.clone(),
        };
        let (process, addresses) = on_free_ports(|addresses| self.start_proxy(&names, &place(addresses)))?;
        let place = place(addresses);
        self.balancer.add(place.listen);
        self.replicas.push(Replica { names, place, process: Some(process) });
        Ok(())
    }

    fn start_proxy(&self, names: &NameServer, place: &Place) -> Result<(Process, Ready)> {
        if let Some(config) = self.program.config(place) {
            fs::write(&place.config, config)?;
        }
        let mut arguments = self.program.arguments(place).into_iter();
        // Processes end with the thread that started them, however that ends.
        let mut command = names.command("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(arguments.by_ref());
        Ok((Process::start("proxy", &mut command)?, self.program.ready(place)))
    }

    /// Restarts a replica at its addresses. Meanwhile it gets no new connections.
    fn restart(&mut self, n: usize) -> Result<()> {
        self.balancer.set_ready(n, false);
        let replica = self.replicas.get_mut(n).context("no such replica")?;
        if let Some(mut process) = replica.process.take() {
            process.stop()?;
        }
        let replica = self.replicas.get(n).context("no such replica")?;
        let (process, ready) = self.start_proxy(&replica.names, &replica.place)?;
        until("the replica is ready again", || Ok(ready.holds().then_some(())))?;
        if let Some(replica) = self.replicas.get_mut(n) {
            replica.process = Some(process);
        }
        self.balancer.set_ready(n, true);
        Ok(())
    }

    /// The output of the replicas.
    pub(crate) fn logs(&self) -> String {
        self.replicas.iter().filter_map(|replica| Some(replica.process.as_ref()?.log())).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for tasks in self.backends.iter().filter_map(|backend| backend.tasks.as_ref()) {
            tasks.stop();
        }
    }
}
