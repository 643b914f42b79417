//! The command line: commands, flags and exit codes.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Parser, Subcommand};

use crate::{
    config::{Backends, Draft, LoadError},
    settings::{
        LogEncoding, LogLevel,
        addresses::{ADMIN_PORT, ListenAddress, OTLP_GRPC_PORT, OTLP_HTTP_PORT},
        values::GoDuration,
    },
    tools,
};

/// The process ended as intended: it drained after a signal, or the command succeeded.
pub const EXIT_OK: u8 = 0;
/// The process failed while running: a port is taken, or the demo split a trace.
pub const EXIT_FAILURE: u8 = 1;
/// The process did not start: the command line or the configuration is wrong.
pub const EXIT_USAGE: u8 = 2;

/// The shortest interval between two checks of the configuration file.
const LEAST_WATCH: Duration = Duration::from_millis(100);

/// Appended to `--help`. A test parses every line that starts with `spanring`.
const EXAMPLES: &str = "\
Examples:
  spanring demo
  spanring --config spanring.yaml
  spanring --backends dns://collectors.observability.svc:4317 --otlp-grpc 0.0.0.0:4317
  spanring --backends static://10.0.0.1:4317,10.0.0.2:4317 --log-format json
  spanring --config spanring.yaml --watch-config
  spanring validate --config spanring.yaml
  spanring print-config --backends dns://collectors.test
  spanring ring lookup 4bf92f3577b34da6a3ce929d0e0e4736 --admin localhost:8888
  spanring convert collector.yaml >spanring.yaml
  spanring healthcheck --admin localhost:8888 --timeout 1s

Exit codes:
  0    did what was asked; after a signal: drained
  1    failed while running
  2    the command line or the configuration is wrong
  130  SIGINT came a second time: ended at once (143: SIGTERM)";

/// Sends every trace, whole, to one collector: a proxy for OpenTelemetry that splits batches by trace ID.
#[derive(Debug, Parser)]
#[command(
    name = "spanring",
    version,
    about,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    run: RunArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The command to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy (the default command)
    Run(RunArgs),
    /// Check a configuration without running it
    Validate(RunArgs),
    /// Print the complete configuration: defaults filled in, references replaced, secrets hidden; unset sections left out
    PrintConfig(RunArgs),
    /// Show rings and the owners of traces, compare rings, plan a change
    Ring(tools::ring::Args),
    /// Convert a Collector's load-balancing configuration, and list what is left out or works differently
    Convert(tools::convert::Args),
    /// Ask a running proxy whether it is ready, for containers without a shell: exit code 0 or 1
    Healthcheck(tools::healthcheck::Args),
    /// Run a counting OTLP backend
    Sink(tools::sink::Args),
    /// Generate OTLP load
    Load(tools::load::Args),
    /// Run backends, proxies and load in one process, and report how many traces stayed whole
    Demo(tools::demo::Args),
}

/// Flags that choose a configuration, a file or `--backends`, and override some of its keys.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("source").args(["config", "backends"]).required(true))]
pub struct RunArgs {
    /// Configuration file (YAML)
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Reload the file when it changes, checked every INTERVAL; SIGHUP also reloads it [default: 5s]
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "5s", conflicts_with = "backends")]
    watch_config: Option<GoDuration>,
    /// Run without a file: static://HOST:PORT,… or dns://NAME[:4317]
    #[arg(short, long, value_name = "BACKENDS")]
    backends: Option<Backends>,
    /// Address for OTLP/gRPC [default: 127.0.0.1:4317]
    #[arg(long, value_name = "ADDR")]
    otlp_grpc: Option<ListenAddress<OTLP_GRPC_PORT>>,
    /// Address for OTLP/HTTP [default: 127.0.0.1:4318; with a file: none, unless it has the section http]
    #[arg(long, value_name = "ADDR")]
    otlp_http: Option<ListenAddress<OTLP_HTTP_PORT>>,
    /// Address for metrics and probes [default: 127.0.0.1:8888]
    #[arg(long, value_name = "ADDR")]
    admin: Option<ListenAddress<ADMIN_PORT>>,
    /// Format of log lines [default: text]
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogEncoding>,
    /// Lowest level that is logged [default: info]
    #[arg(long, value_enum, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
}

impl Cli {
    /// Returns the given command, or `run` when none was given.
    pub fn into_command(self) -> Command {
        self.command.unwrap_or(Command::Run(self.run))
    }
}

impl RunArgs {
    /// How often to check the file for changes; `None` without `--watch-config`.
    pub fn watch_config(&self) -> Option<Duration> {
        self.watch_config.map(|interval| interval.0.max(LEAST_WATCH))
    }

    /// Reads the file, or builds a configuration from `--backends`, and applies the other flags over it.
    pub fn draft(self) -> Result<Draft, LoadError> {
        let mut draft = match (self.config, self.backends) {
            (Some(path), _) => Draft::read(&path)?,
            (None, backends) => Draft::of_backends(backends.unwrap_or_else(|| Backends::Static(Vec::new()))),
        };
        let settings = &mut draft.settings;
        override_with(&mut settings.receivers.otlp.protocols.grpc.endpoint, self.otlp_grpc);
        if let Some(address) = self.otlp_http {
            settings.receivers.otlp.protocols.http.0.get_or_insert_default().endpoint = address;
        }
        override_with(&mut settings.admin.endpoint, self.admin);
        override_with(&mut settings.telemetry.logs.encoding, self.log_format);
        override_with(&mut settings.telemetry.logs.level, self.log_level);
        Ok(draft)
    }
}

fn override_with<T>(value: &mut T, flag: Option<T>) {
    if let Some(flag) = flag {
        *value = flag;
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(Cli::into_command)
    }

    fn settings(line: &str) -> crate::settings::Settings {
        match parse(line).expect(line) {
            Command::Run(args) | Command::Validate(args) | Command::PrintConfig(args) => {
                args.draft().expect(line).settings
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_example_of_the_help_parses() {
        let examples: Vec<&str> = EXAMPLES.lines().map(str::trim).filter(|line| line.starts_with("spanring")).collect();
        assert!(!examples.is_empty());
        for line in examples {
            let words = line.split(" >").next().unwrap_or_default();
            assert!(parse(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn run_is_the_default_command() {
        let flags = "--backends dns://collectors.test --otlp-grpc [::1]:1 --admin localhost:0 --log-level debug";
        let bare = settings(&format!("spanring {flags}"));
        assert_eq!(bare, settings(&format!("spanring run {flags}")));
        assert_eq!(bare.receivers.otlp.protocols.grpc.endpoint.to_string(), "[::1]:1");
        assert_eq!(bare.admin.endpoint.to_string(), "localhost:0");
        assert_eq!(bare.telemetry.logs.level, LogLevel::Debug);
        let dns = bare.pools["default"].resolver.dns.as_ref().expect("dns");
        assert_eq!((dns.hostname.as_str(), dns.port), ("collectors.test", Some(4317)));
    }

    #[test]
    fn backends_are_given_as_a_list() {
        let list = settings("spanring --backends static://a:1,b,[::1]:2").pools["default"].resolver.r#static.clone();
        let written: Vec<String> = list.expect("a list").hostnames.iter().map(ToString::to_string).collect();
        assert_eq!(written, ["a:1", "b", "[::1]:2"]);
    }

    #[test]
    fn the_interval_of_watch_config_is_written_in_any_usual_form() {
        let watched = |line: &str| match parse(line).expect(line) {
            Command::Run(args) => args.watch_config(),
            other => panic!("{other:?}"),
        };
        for (flag, seconds) in
            [("", None), ("--watch-config", Some(5)), ("--watch-config=7s", Some(7)), ("--watch-config 7s", Some(7))]
        {
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(watched(&format!("spanring run {flag} --config a.yaml")), expected, "{flag}");
            assert_eq!(watched(&format!("spanring --config a.yaml {flag}")), expected, "{flag}");
        }
    }

    #[test]
    fn senseless_command_lines_are_usage_errors() {
        for line in [
            "spanring",
            "spanring run",
            "spanring --config a.yaml --backends dns://b",
            "spanring --backends dns://b --watch-config",
            "spanring --backends collectors.test",
            "spanring --backends static://",
            "spanring --backends dns://",
            "spanring --backends dns://a --admin :8888",
            "spanring --backends dns://a --log-format xml",
            "spanring --backends dns://a demo",
            "spanring validate",
            "spanring ringg",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), i32::from(EXIT_USAGE), "{line}");
        }
        for (line, advice) in [
            ("spanring --backends dns://a --otlp-grpc 4317", "write 127.0.0.1:4317 "),
            ("spanring --backends dns://a --otlp-grpc localhost", "write localhost:4317"),
            ("spanring --backends dns://a --admin 127.0.0.1", "write 127.0.0.1:8888"),
            ("spanring --config a.yaml --watch-config 5", "\"5\" has no unit; write 5s or 5ms"),
            ("spanring --config a.yaml --watch-config=often", "write 200ms, 5s or 1m30s"),
        ] {
            let message = parse(line).expect_err(line).to_string();
            assert!(message.contains(advice), "{message}");
        }
        for line in ["spanring --help", "spanring --version", "spanring run --help"] {
            assert_eq!(parse(line).expect_err(line).exit_code(), i32::from(EXIT_OK), "{line}");
        }
    }
}
