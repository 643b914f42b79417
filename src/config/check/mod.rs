//! Checks that settings are in range, fit each other and fit this machine, and makes the [`Config`] from them. It
//! reports all errors at once. The check of a key is in the file of its section.

mod listeners;
mod pools;
mod report;
mod routes;

use std::path::Path;

pub(super) use self::report::{IsHidden, Place};
use self::report::{KeyPath, Report};
use super::{Config, ConfigError, memory, message::Message, tls};
use crate::{
    budget::Division,
    settings::{
        MemoryLimiter, Settings,
        values::{MIB, WorkerThreads},
    },
};

/// The largest size of a message, in MiB: a length in gRPC's prefix and in protobuf is less than 2 GiB.
const MAX_MESSAGE_MIB: usize = 2047;

/// Checks all settings. `root` is the directory that contains `proc` and `sys`.
///
/// Warnings begin with what `place` returns for the path of their key.
pub(super) fn check(
    settings: &Settings,
    root: &Path,
    is_hidden: IsHidden<'_>,
    place: Place<'_>,
) -> Result<Config, Vec<ConfigError>> {
    let mut report = Report::new(is_hidden, place);
    listeners::check_grpc(settings, &mut report);
    listeners::check_http(settings, &mut report);
    let pools = pools::check(settings, &mut report);
    let routes = routes::check(settings, &mut report);
    let memory_limit = memory_limit(&settings.memory_limiter, root, &mut report);
    let listeners = listeners::addresses(settings, &mut report);
    let (Some(listeners), Some(memory_limit), true) = (listeners, memory_limit, report.errors.is_empty()) else {
        return Err(report.errors);
    };
    let mut config = Config {
        receive: listeners.receive,
        invalid_trace_id: settings.invalid_trace_id,
        pools,
        routes,
        admin: Some(listeners.admin),
        health_check: listeners.health_check,
        memory_limit,
        worker_threads: worker_threads(settings.worker_threads),
        shutdown: settings.shutdown,
        logs: settings.telemetry.logs,
        warnings: report.warnings,
    };
    fit_messages_to_memory(&mut config);
    Ok(config)
}

/// Lowers the largest message to the requests' share of the memory limit. A message that can never fit would otherwise be refused as one that can be
/// sent again, for ever.
fn fit_messages_to_memory(config: &mut Config) {
    let limit = Division::of(config.memory_limit, 0).requests;
    if let Some(http) = &mut config.receive.http {
        let size = &mut http.keys.max_request_body_size;
        if size.0 > limit {
            config.warnings.push(format!(
                "max_request_body_size is {size}, but memory_limiter leaves {} MiB for requests: the smaller of them applies",
                limit / MIB,
            ));
            size.0 = limit;
        }
    }
    let Some(grpc) = &mut config.receive.grpc else { return };
    let size = &mut grpc.keys.max_recv_msg_size_mib;
    if size.bytes > limit {
        config.warnings.push(format!(
            "max_recv_msg_size_mib is {} MiB, but memory_limiter leaves {} MiB for requests: the smaller of them applies",
            size.mebibytes(),
            limit / MIB,
        ));
        size.bytes = limit;
    }
}

fn worker_threads(threads: WorkerThreads) -> usize {
    match threads {
        WorkerThreads::Count(count) => count.get(),
        // This respects the affinity of the process and the quota of its cgroup.
        WorkerThreads::Auto => std::thread::available_parallelism().map_or(1, Into::into),
    }
}

fn memory_limit(keys: &MemoryLimiter, root: &Path, report: &mut Report<'_>) -> Option<usize> {
    let at = KeyPath::of(&["memory_limiter"]);
    if let Some(limit) = keys.limit_mib {
        report.within(&at.key("limit_mib"), limit.mebibytes(), 1, usize::MAX / MIB);
        return Some(limit.bytes);
    }
    report.within(&at.key("limit_percentage"), keys.limit_percentage, 1, 100);
    let Some(memory) = memory::available(root) else {
        report.error(&at, "this machine does not say how much memory it has; set limit_mib");
        return None;
    };
    usize::try_from(memory / 100 * u64::from(keys.limit_percentage)).ok()
}

/// Adds the errors or warnings about the `tls` section at `path`.
fn report_tls(path: &KeyPath, found: tls::Findings, report: &mut Report<'_>) {
    let at = |key: &str| if key.is_empty() { path.clone() } else { path.key(key) };
    match found {
        Ok(warnings) => warnings.into_iter().for_each(|(key, message)| report.warn(&at(key), message)),
        // The message about a key that does not belong to its certificate names both files.
        Err(errors) => {
            errors.into_iter().for_each(|(key, message)| report.error_about(&at(key), &[&at("cert_file")], message));
        }
    }
}

/// Returns the message about a value that must not be less than that of another key: `VALUE is less than KEY, LEAST`.
fn less_than(value: impl std::fmt::Display, key: &str, least: impl std::fmt::Display) -> Message {
    Message::both(format!("{value} is less than {key}, {least}"), format!("is less than {key}"))
}
