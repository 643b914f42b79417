//! Messages that need a large part of the limit: what can never fit is refused for good, and what fits alone is taken.

use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use prost::Message;
use spanring::tools::sink::SinkConfig;
use tonic::Code;

use crate::{
    harness::Proxy,
    rig::{Reply, Sinks, config, framed, request, send_raw, span},
};

/// The limit in MiB.
const LIMIT: u64 = 16;

/// Returns a request of about `mib` MiB, in which every span has a trace and a name of its own.
fn message(mib: u64) -> Vec<u8> {
    let spans = (1..=mib * 256).map(|n| {
        let mut span = span(u128::from(n) << 17 | u128::from(n), n);
        span.name =
            (0..250_u64).map(|part| format!("{:016x}", (n << 8 | part).wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
        span
    });
    request(spans.collect()).encode_to_vec()
}

/// Returns the header and the body of a message, for each encoding.
fn packed(message: &[u8]) -> Result<[(&'static str, Bytes); 3]> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(message)?;
    let gzip = framed(1, &gzip.finish()?)?;
    let zstd = framed(1, &zstd::encode_all(message, 1)?)?;
    Ok([("identity", framed(0, message)?), ("gzip", gzip), ("zstd", zstd)])
}

/// Sends a message in each encoding to an idle proxy, and calls `check` with the answer and the encoding.
fn answered(mib: u64, check: impl Fn(&str, &Reply) -> Result<()>) -> Result<u64> {
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let limiter = format!("memory_limiter: {{ limit_mib: {LIMIT} }}");
    let proxy = Proxy::start("spanring", |grpc, admin| config(grpc, admin, &sinks.addresses(), "", &limiter))?;
    for (encoding, body) in packed(&message(mib))? {
        let reply = sinks.runtime.block_on(send_raw(proxy.grpc, &[("grpc-encoding", encoding)], body));
        check(encoding, &reply.with_context(|| encoding.to_owned())?)?;
    }
    Ok(sinks.spans())
}

#[test]
fn a_message_that_can_never_fit_is_refused_for_good() -> Result<()> {
    let spans = answered(9, |encoding, reply| {
        ensure!(reply.code == Code::ResourceExhausted as i32, "{encoding}: {reply:?}");
        ensure!(reply.message.contains("memory_limiter"), "{encoding}: the key must be named: {reply:?}");
        Ok(())
    })?;
    ensure!(spans == 0, "{spans} spans of refused messages were delivered");
    Ok(())
}

#[test]
fn a_message_that_fits_alone_is_taken_however_it_is_compressed() -> Result<()> {
    let spans = answered(2, |encoding, reply| {
        ensure!(reply.code == Code::Ok as i32, "{encoding}: {reply:?}");
        Ok(())
    })?;
    ensure!(spans == 3 * 2 * 256, "{spans} spans");
    Ok(())
}
