//! A network namespace for the bench, with nodes that can vanish: packets to a vanished node are dropped silently.
//!
//! The whole bench runs in namespaces of its own for network and mounts, if it may (as root, with iproute2 and
//! util-linux). Nothing it sends can leave that network, and nothing on the machine is changed. The namespaces
//! disappear with the bench's last process, however it ends.

use std::{
    net::IpAddr,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// Environment variable that is set after the attempt: the reason why the bench has no network of its own, or empty if
/// it has.
const INSIDE: &str = "SPANRING_FAULTS_NETWORK";

/// Sets up a loopback device and the directory for named network namespaces.
const PREPARE: &str =
    "mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns; ip link set lo up; ip link show lo >/dev/null";

/// Restarts the bench in a network of its own, unless it runs in one already or cannot have one.
pub(crate) fn enter() -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let mut trial = apart("setpriv --pdeathsig KILL true");
    let tried = trial.stdin(Stdio::null()).output();
    let why_not = match tried {
        Err(error) => format!("cannot run unshare: {error}"),
        Ok(output) if output.status.success() => String::new(),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    };
    let mut again = if why_not.is_empty() { apart("exec \"$@\"") } else { Command::new("env") };
    again.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, why_not);
    Err(again.exec()).context("cannot start the bench again")
}

/// Builds a command that runs a shell line, with arguments, in namespaces of its own for network and mounts.
fn apart(line: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "sh", "-ec", &format!("{PREPARE}; {line}"), "faults"]);
    command
}

/// Returns why nodes are not possible here; `None` if they are.
pub(crate) fn why_not() -> Option<String> {
    std::env::var(INSIDE).ok().filter(|reason| !reason.is_empty())
}

/// Builds a command for a program that ends with the bench, if nodes are possible.
pub(crate) fn command(program: &str) -> Command {
    if why_not().is_some() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// A node with an address of its own. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Node {
    name: String,
    /// The name of our end of its link.
    link: String,
    net: String,
}

impl Node {
    /// Adds node number `n`. Works only in a network of the bench's own.
    pub(crate) fn add(n: usize) -> Result<Self> {
        let node = Self { name: format!("node-{n}"), link: format!("to-node-{n}"), net: format!("10.0.{n}") };
        let Self { name, link, net } = &node;
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add {link} type veth peer name link netns {name}"))?;
        ip(&format!("addr add {net}.1/30 dev {link}"))?;
        ip(&format!("link set {link} up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} link set dev link address 02:00:00:00:00:02 up"))?;
        // The neighbour entry is permanent, so that a vanished node causes no "host unreachable" errors.
        ip(&format!("neigh replace {net}.2 lladdr 02:00:00:00:00:02 dev {link} nud permanent"))?;
        node.appear()?;
        Ok(node)
    }

    pub(crate) fn address(&self) -> Result<IpAddr> {
        Ok(format!("{}.2", self.net).parse()?)
    }

    /// Builds a command for a program that runs on this node and ends with the bench.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "setpriv", "--pdeathsig", "KILL", program]);
        command
    }

    /// Drops all packets to and from the node from now on.
    pub(crate) fn vanish(&self) -> Result<()> {
        ip(&format!("-n {} addr del {}.2/30 dev link", self.name, self.net))
    }

    /// Undoes [`Node::vanish`].
    pub(crate) fn appear(&self) -> Result<()> {
        ip(&format!("-n {} addr add {}.2/30 dev link", self.name, self.net))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Whatever cannot be removed disappears with the bench.
        drop(ip(&format!("link del {}", self.link)));
        drop(ip(&format!("netns del {}", self.name)));
    }
}

fn ip(line: &str) -> Result<()> {
    let output =
        Command::new("ip").args(line.split_whitespace()).stdin(Stdio::null()).output().context("cannot run ip")?;
    ensure!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
