//! The program that is measured: Spanring with one of its hand-off modes, or another proxy.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use spanring::ring::Algorithm;

use super::plan::{Plan, Step};
use crate::harness::Ready;

/// The binary of this build.
const OURS: &str = env!("CARGO_BIN_EXE_spanring");

/// How often a replica asks its name server. Short, so that the time by which replicas differ is that of the name
/// servers.
const INTERVAL: Duration = Duration::from_millis(250);

/// The hand-off modes of a pool.
pub(crate) const MODES: [&str; 3] = ["immediate", "dual", "sticky"];

/// What a process needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Address for OTLP/gRPC.
    pub(crate) listen: SocketAddr,
    /// Address for a page that answers 200 when the proxy is ready.
    pub(crate) page: SocketAddr,
    /// The DNS name of the backends.
    pub(crate) name: &'static str,
    /// The port of the backends.
    pub(crate) port: u16,
    /// The backends as a list of `name:port`, where they are not known by one name.
    pub(crate) backends: Option<Vec<String>>,
    /// How traces are placed on the backends.
    pub(crate) algorithm: Algorithm,
    /// The configuration file.
    pub(crate) config: PathBuf,
}

/// The program that is measured.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    Spanring {
        binary: PathBuf,
        mode: &'static str,
        /// The key of the mode; empty if the binary has none and does the same without it.
        handoff: String,
        hold_down: Duration,
    },
    Peer {
        /// A shell command with placeholders.
        command: String,
        /// The text of its configuration file, with placeholders.
        config: Option<String>,
    },
}

impl Program {
    /// Returns Spanring in this mode with these keys, or the reason why the binary refuses it. `handoff` is the window and
    /// the skew.
    pub(crate) fn spanring(
        mode: &'static str,
        handoff: [Duration; 2],
        hold_down: Duration,
    ) -> Result<Result<Self, String>> {
        let binary = std::env::var_os("SPANRING_BIN").map_or_else(|| PathBuf::from(OURS), PathBuf::from);
        let [window, skew] = handoff.map(millis);
        let written = |more: &str| format!("handoff: {{ mode: {mode}, window: {window}{more} }}");
        // Older builds do not know `skew`. A build without hand-off does what `immediate` does.
        let mut ways = vec![written(&format!(", skew: {skew}")), written("")];
        ways.extend((mode == "immediate").then(String::new));
        let mut refusal = String::new();
        for handoff in ways {
            let program = Self::Spanring { binary: binary.clone(), mode, handoff, hold_down };
            match program.refusal()? {
                None => return Ok(Ok(program)),
                Some(reason) => refusal = reason,
            }
        }
        Ok(Err(refusal))
    }

    /// The name in reports.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Spanring { mode, .. } => mode,
            Self::Peer { .. } => "peer",
        }
    }

    /// Whether it can do what the plan needs: know the backends by names of their own, or read another configuration.
    pub(crate) fn can_follow(&self, plan: &Plan) -> bool {
        let Self::Peer { command, config } = self else { return true };
        if plan.steps.iter().any(|(_, step)| matches!(step, Step::Reload(_))) {
            return false;
        }
        let wanted = if plan.has_names { "{backends}" } else { "{name}" };
        command.contains(wanted) || config.as_ref().is_some_and(|config| config.contains(wanted))
    }

    /// Why the binary refuses the configuration; `None` if it takes it.
    fn refusal(&self) -> Result<Option<String>> {
        let Self::Spanring { binary, .. } = self else { return Ok(None) };
        let dir = tempfile::tempdir()?;
        let any = SocketAddr::from(([127, 0, 0, 1], 4317));
        let page = SocketAddr::from(([127, 0, 0, 1], 8888));
        let (algorithm, config) = (Algorithm::default(), dir.path().join("spanring.yaml"));
        let place =
            Place { listen: any, page, name: "collectors.test.", port: 4317, backends: None, algorithm, config };
        fs::write(&place.config, self.config(&place).unwrap_or_default())?;
        let mut command = Command::new(binary);
        let output = command.arg("validate").arg("--config").arg(&place.config).output();
        let output = output.with_context(|| format!("cannot start {}", binary.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        // Without the name of the file, which exists no longer.
        let reason = said.split_once("spanring.yaml:").map_or(&*said, |(_, reason)| reason).trim();
        Ok((!output.status.success()).then(|| reason.to_owned()))
    }

    /// The text of the configuration file, if there is one.
    pub(crate) fn config(&self, place: &Place) -> Option<String> {
        let Self::Spanring { handoff, hold_down, .. } = self else {
            let Self::Peer { config, .. } = self else { return None };
            return Some(filled_in(config.as_ref()?, place));
        };
        let Place { listen, page, name, port, .. } = place;
        let resolver = match &place.backends {
            Some(backends) => {
                format!("static: {{ hostnames: [{}], interval: {} }}", quoted(backends), millis(INTERVAL))
            }
            None => format!("dns: {{ hostname: {name}, port: {port}, interval: {} }}", millis(INTERVAL)),
        };
        // Older builds know the usual algorithm only, and no key for it.
        let other = (place.algorithm != Algorithm::default()).then(|| format!("algorithm: {}", place.algorithm.name()));
        let ring: Vec<_> = other.into_iter().chain((!handoff.is_empty()).then(|| handoff.clone())).collect();
        Some(format!(
            "receivers:
  otlp: {{ protocols: {{ grpc: {{ endpoint: \"{listen}\" }} }} }}
pools:
  tail:
    resolver: {{ {resolver} }}
    hold_down: {}
    ring: {{ {} }}
routes: [{{ signals: [traces], routing_key: trace_id, pool: tail }}]
admin: {{ endpoint: \"{page}\" }}
shutdown: {{ delay: 0s, timeout: 10s }}
",
            millis(*hold_down),
            ring.join(", ")
        ))
    }

    /// The program and its arguments.
    pub(crate) fn arguments(&self, place: &Place) -> Vec<String> {
        match self {
            Self::Spanring { binary, .. } => {
                let [binary, config] = [binary, &place.config].map(|path| path.display().to_string());
                [&binary, "run", "--config", &config].map(str::to_owned).to_vec()
            }
            Self::Peer { command, .. } => vec!["sh".to_owned(), "-c".to_owned(), filled_in(command, place)],
        }
    }

    /// When the process is ready.
    pub(crate) fn ready(&self, place: &Place) -> Ready {
        match self {
            Self::Spanring { .. } => Ready::Page(format!("http://{}/readyz", place.page)),
            Self::Peer { .. } => Ready::Listening(vec![place.listen]),
        }
    }

    /// What is measured, for the top of the report.
    pub(crate) fn describe(&self) -> Result<String> {
        match self {
            Self::Spanring { binary, .. } => {
                let output = Command::new(binary).arg("--version").output();
                let output = output.with_context(|| format!("cannot start {}", binary.display()))?;
                ensure!(output.status.success(), "{} --version failed", binary.display());
                Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
            }
            Self::Peer { command, .. } => Ok(command.clone()),
        }
    }
}

/// Replaces the placeholders in a peer's command or configuration.
fn filled_in(template: &str, place: &Place) -> String {
    let backends = place.backends.as_ref().map(|backends| quoted(backends)).unwrap_or_default();
    template
        .replace("{listen}", &place.listen.to_string())
        .replace("{page}", &place.page.to_string())
        .replace("{name}", place.name.trim_end_matches('.'))
        .replace("{port}", &place.port.to_string())
        .replace("{backends}", &backends)
        .replace("{config}", &place.config.display().to_string())
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

fn millis(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}
