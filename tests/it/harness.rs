//! Utilities for all tests with processes: child processes that end with the test, waiting for a condition, free ports,
//! temporary files.
//!
//! Nothing here sleeps for a fixed time: [`until`] checks a condition repeatedly, up to a deadline. When a test fails,
//! the output of its child processes is shown. Benches use this module, too.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::time::Instant;

/// The time limit for anything that a test waits for. It is long, because the machine may be busy with other work.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(60);

/// The interval between two checks of a condition.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Number of lines kept of a child's output.
const KEPT_LINES: usize = 400;

/// Number of attempts to start a process, in case another process takes a port that was free a moment ago.
const STARTS: usize = 3;

/// A child process, killed when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: Arc<Mutex<VecDeque<String>>>,
    readers: Vec<JoinHandle<()>>,
}

/// A Spanring process that is ready.
pub(crate) struct Proxy {
    /// Address of its OTLP/gRPC receiver.
    pub(crate) grpc: SocketAddr,
    /// Address of `/metrics`, `/livez` and `/readyz`.
    pub(crate) admin: SocketAddr,
    pub(crate) process: Process,
    dir: tempfile::TempDir,
}

/// Condition under which a process is ready.
pub(crate) enum Ready {
    /// This page answers with status 200.
    Page(String),
    /// All of these addresses accept connections.
    Listening(Vec<SocketAddr>),
}

impl Ready {
    /// Returns whether the condition holds now.
    pub(crate) fn holds(&self) -> bool {
        match self {
            Self::Page(url) => http_get(url).is_ok_and(|(status, _)| status == 200),
            Self::Listening(addresses) => addresses.iter().all(|address| TcpStream::connect(address).is_ok()),
        }
    }
}

impl Process {
    /// Starts a command and keeps its output.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let outputs = [
            child.stdout.take().map(|pipe| keep_lines(pipe, &log)),
            child.stderr.take().map(|pipe| keep_lines(pipe, &log)),
        ];
        Ok(Self { name: name.to_owned(), child, log, readers: outputs.into_iter().flatten().collect() })
    }

    /// Returns its output, as far as it was kept.
    pub(crate) fn log(&self) -> String {
        let lines = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| format!("{}: {line}\n", self.name)).collect()
    }

    /// Returns the process ID.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status, if the process has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until the process ends by itself.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        let (name, child) = (&self.name, &mut self.child);
        let status = until(&format!("{name} ends"), || Ok(child.try_wait()?))?;
        for reader in self.readers.drain(..) {
            ensure!(reader.join().is_ok(), "the reader of an output panicked");
        }
        Ok(status)
    }

    /// Sends a signal, given by name: `TERM`, `HUP`, `STOP`, `KILL`.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let kill = format!("kill -{signal} {}", self.child.id());
        ensure!(Command::new("sh").args(["-c", &kill]).status()?.success(), "{kill} failed");
        // `kill` returns before all threads have stopped.
        while signal == "STOP" && !self.is_stopped()? {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Returns whether all threads are stopped; true on systems where this is not known.
    fn is_stopped(&self) -> Result<bool> {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.child.id())) else { return Ok(true) };
        for task in tasks {
            let stat = fs::read_to_string(task?.path().join("stat"))?;
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            if !matches!(state, Some('T' | 't')) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends SIGTERM and waits until the process has ended.
    pub(crate) fn stop(&mut self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.wait()
    }
}

impl Drop for Process {
    #[expect(clippy::print_stderr, reason = "the test's own output, which is shown only when it failed")]
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if env!("CARGO_CRATE_NAME") == "it" {
            eprint!("{}", self.log());
        }
    }
}

impl Proxy {
    /// Starts Spanring with the configuration that `config` returns for its two addresses, and waits until it is ready.
    pub(crate) fn start(name: &str, config: impl Fn(SocketAddr, SocketAddr) -> String) -> Result<Self> {
        Self::start_by(name, || Command::new(env!("CARGO_BIN_EXE_spanring")), "readyz", config)
    }

    /// Like [`Proxy::start`], but with another command, to which the arguments are added, and another page that must
    /// answer 200.
    pub(crate) fn start_by(
        name: &str,
        command: impl Fn() -> Command,
        page: &str,
        config: impl Fn(SocketAddr, SocketAddr) -> String,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("spanring.yaml");
        let (process, [grpc, admin]) = on_free_ports(|[grpc, admin]| {
            fs::write(&file, config(grpc, admin))?;
            let process = Process::start(name, command().arg("run").arg("--config").arg(&file))?;
            Ok((process, Ready::Page(format!("http://{admin}/{page}"))))
        })?;
        Ok(Self { grpc, admin, process, dir })
    }

    /// Replaces the configuration file atomically.
    pub(crate) fn rewrite(&self, config: &str) -> Result<()> {
        let draft = self.dir.path().join("draft.yaml");
        fs::write(&draft, config)?;
        Ok(fs::rename(draft, self.dir.path().join("spanring.yaml"))?)
    }
}

/// Starts a process on ports that were free a moment ago and waits until it is ready. If it ends instead, another
/// process may have taken a port, so it is started again on other ports.
pub(crate) fn on_free_ports<const N: usize>(
    start: impl Fn([SocketAddr; N]) -> Result<(Process, Ready)>,
) -> Result<(Process, [SocketAddr; N])> {
    let mut logs = String::new();
    for _ in 0..STARTS {
        let addresses = free_addresses()?;
        let (mut process, ready) = start(addresses)?;
        let is_ready = until(&format!("{} is ready", process.name), || {
            let has_ended = process.ended()?.is_some();
            Ok((has_ended || ready.holds()).then_some(!has_ended))
        });
        match is_ready {
            Ok(true) => return Ok((process, addresses)),
            Ok(false) => logs = format!("ended with {:?}:\n", process.ended()?) + &process.log(),
            Err(error) => return Err(error.context(process.log())),
        }
    }
    bail!("{STARTS} starts failed; the last {logs}")
}

/// Calls `look` until it returns a value. `what` completes the sentence "it never came to pass that …".
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + TIME_LIMIT;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "it never came to pass that {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Returns different addresses that were free a moment ago.
pub(crate) fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    let listeners: Vec<TcpListener> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let addresses: Vec<SocketAddr> = listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
    addresses.try_into().ok().context("as many addresses as were asked for")
}

/// Returns the sum of a metric's series whose labels contain all of these texts, read from `/metrics` at `admin`.
pub(crate) fn metric(admin: SocketAddr, name: &str, labels: &[&str]) -> Result<f64> {
    let (status, page) = http_get(&format!("http://{admin}/metrics"))?;
    ensure!(status == 200, "/metrics answered {status}");
    let series = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} "));
    let chosen = series.filter(|(found, _)| labels.iter().all(|label| found.contains(label)));
    chosen.map(|(_, value)| value.parse::<f64>().with_context(|| format!("{name} is {value}"))).sum()
}

/// Returns the status and the body of `http://ADDRESS/PATH`.
pub(crate) fn http_get(url: &str) -> Result<(u16, String)> {
    let (address, path) =
        url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).context("no URL of ours")?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIME_LIMIT))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").context("no HTTP reply")?;
    let status = head.split_whitespace().nth(1).context("no status line")?.parse()?;
    Ok((status, body.to_owned()))
}

/// Returns the path of a program in `SPANRING_PEERS`. If it is missing, prints a line and returns `None`.
pub(crate) fn peer(name: &str) -> Result<Option<PathBuf>> {
    let path = std::env::var_os("SPANRING_PEERS").map(|dir| PathBuf::from(dir).join("bin").join(name));
    if let Some(path) = path.filter(|path| path.is_file()) {
        return Ok(Some(path));
    }
    // Written to stderr directly, since captured output would be hidden and the skipped test would look like one that
    // passed.
    writeln!(
        std::io::stderr(),
        "\nskipped: {name} is not in SPANRING_PEERS; tests/peers/ has scripts that install it"
    )?;
    Ok(None)
}

fn keep_lines(pipe: impl Read + Send + 'static, log: &Arc<Mutex<VecDeque<String>>>) -> JoinHandle<()> {
    let log = Arc::clone(log);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            if log.len() == KEPT_LINES {
                log.pop_front();
            }
            log.push_back(line);
        }
    })
}
