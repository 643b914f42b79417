//! The messages and services of `proto/`, compiled by the build script.

/// `spanring.admin.v1`: the service `Ring` and its messages.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic, clippy::nursery)]
#[allow(rustdoc::all, elided_lifetimes_in_paths, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("spanring.admin.v1");
}

/// The file descriptors of `proto/`, for reflection.
pub(super) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/spanring.admin.v1.bin"));
