//! Fingerprints: 48 bits that are equal in all replicas that agree. A double represents them exactly, so they can be
//! metric values.

use xxhash_rust::xxh3::xxh3_64;

use super::{Algorithm, Member};

/// Hashes the algorithm's name and parameters and all members, each by the text that the algorithm hashes. Texts are
/// preceded by their length; numbers are little-endian.
pub(super) fn of_membership(algorithm: Algorithm, members: &[Member]) -> u64 {
    let mut bytes = of_algorithm(algorithm);
    for member in members {
        put_text(&mut bytes, if algorithm.is_of_exporter() { member.exporter_name() } else { &member.identity });
        bytes.extend(member.weight.to_le_bytes());
    }
    finish(&bytes)
}

/// Hashes the algorithm and, for each slot, a hash of its owner's identity.
pub(super) fn of_placement(algorithm: Algorithm, members: &[Member], owners: &[u16]) -> u64 {
    let identities: Vec<u64> = members.iter().map(|member| xxh3_64(member.identity.as_bytes())).collect();
    let mut bytes = of_algorithm(algorithm);
    bytes.reserve_exact(owners.len() * size_of::<u64>());
    for owner in owners {
        bytes.extend(identities.get(usize::from(*owner)).copied().unwrap_or_default().to_le_bytes());
    }
    finish(&bytes)
}

fn of_algorithm(algorithm: Algorithm) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_text(&mut bytes, algorithm.name());
    bytes.extend(algorithm.parameters().iter().flat_map(|number| number.to_le_bytes()));
    bytes
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Returns the upper 48 bits of the hash. A double represents them exactly, in Prometheus and in JSON.
fn finish(bytes: &[u8]) -> u64 {
    xxh3_64(bytes) >> 16
}
