//! The shares of backends from the weights of their SRV records. Pure.
//!
//! Only the relation of weights matters, so they are divided by their greatest common divisor: CoreDNS gives each of
//! `n` targets the weight 100 ÷ n, and every scaling would change all of them.

use std::{collections::BTreeMap, sync::Arc};

/// The greatest sum of the shares of one answer: half of what a ring takes (2,048), so that backends that are held
/// beside them fit in too. With more than so many backends, all have share 1.
pub(super) const MAX_TOTAL: u64 = 1024;

/// The shares of backends by identity.
pub(super) type Shares = BTreeMap<Arc<str>, u32>;

/// Returns the shares that belong to these weights. A weight of 0 counts as 1, since it means "small" (RFC 2782).
///
/// `held` has the shares of the backends of the sets before, some of which are absent now. If their relation is still
/// the same, their shares stay: without the absent ones another divisor may be the greatest, and a changed share would
/// move slots of backends that are there.
pub(super) fn shares(weights: &BTreeMap<Arc<str>, u16>, held: &Shares) -> Shares {
    let weights: BTreeMap<Arc<str>, u64> =
        weights.iter().map(|(identity, weight)| (Arc::clone(identity), u64::from(*weight).max(1))).collect();
    let is_one_absent = held.keys().any(|identity| !weights.contains_key(identity));
    let as_before = if is_one_absent { as_before(&weights, held) } else { None };
    as_before.unwrap_or_else(|| reduced(&weights))
}

/// Returns shares in the scale of `held`, if all weights fit that scale.
fn as_before(weights: &BTreeMap<Arc<str>, u64>, held: &Shares) -> Option<Shares> {
    let (weight, share) =
        weights.iter().find_map(|(identity, weight)| Some((*weight, u64::from(*held.get(identity)?))))?;
    let scaled = |(identity, one): (&Arc<str>, &u64)| {
        let product = one.checked_mul(share)?;
        let scaled = product.is_multiple_of(weight).then_some(product / weight)?;
        let is_kept = held.get(identity).is_none_or(|held| u64::from(*held) == scaled);
        is_kept.then_some((Arc::clone(identity), u32::try_from(scaled).ok()?))
    };
    let shares: Shares = weights.iter().map(scaled).collect::<Option<_>>()?;
    (total(shares.values().map(|share| u64::from(*share))) <= MAX_TOTAL).then_some(shares)
}

/// Divides the weights by their greatest common divisor, and makes them smaller if their sum is too large for a ring.
fn reduced(weights: &BTreeMap<Arc<str>, u64>) -> Shares {
    let divisor = weights.values().copied().fold(0, gcd).max(1);
    let total = total(weights.values().map(|weight| weight / divisor));
    let count = u64::try_from(weights.len()).unwrap_or(u64::MAX);
    let share = |weight: u64| match total > MAX_TOTAL {
        true => (weight / divisor * MAX_TOTAL.saturating_sub(count) / total).max(1),
        false => weight / divisor,
    };
    let share = |(identity, weight): (&Arc<str>, &u64)| {
        (Arc::clone(identity), u32::try_from(share(*weight)).unwrap_or(u32::MAX))
    };
    weights.iter().map(share).collect()
}

fn total(weights: impl Iterator<Item = u64>) -> u64 {
    weights.fold(0, u64::saturating_add)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(of: &[(&str, u16)]) -> BTreeMap<Arc<str>, u16> {
        of.iter().map(|(name, weight)| ((*name).into(), *weight)).collect()
    }

    fn held(of: &[(&str, u32)]) -> Shares {
        of.iter().map(|(name, share)| ((*name).into(), *share)).collect()
    }

    #[test]
    fn equal_weights_are_1_whatever_their_value() {
        for weight in [0, 1, 7, 33, 100, u16::MAX] {
            assert_eq!(shares(&weights(&[("a", weight), ("b", weight)]), &held(&[])), held(&[("a", 1), ("b", 1)]));
        }
        assert!(shares(&weights(&[]), &held(&[])).is_empty());
    }

    #[test]
    fn weights_are_divided_by_their_greatest_common_divisor_and_0_is_small() {
        let given = weights(&[("a", 30), ("b", 10), ("c", 20)]);
        assert_eq!(shares(&given, &held(&[])), held(&[("a", 3), ("b", 1), ("c", 2)]));
        let given = weights(&[("a", 0), ("b", 10)]);
        assert_eq!(shares(&given, &held(&[])), held(&[("a", 1), ("b", 10)]));
    }

    #[test]
    fn weights_that_are_too_large_for_a_ring_are_made_smaller() {
        let given = weights(&[("a", u16::MAX), ("b", 1), ("c", u16::MAX / 2)]);
        let found = shares(&given, &held(&[]));
        assert_eq!(found["b"], 1);
        assert!(found["a"] > found["c"] && found.values().sum::<u32>() <= 1024, "{found:?}");
        let many: Vec<String> = (0..2000).map(|n| format!("host-{n}")).collect();
        let many: Vec<(&str, u16)> = many.iter().zip(1..).map(|(name, weight)| (name.as_str(), weight)).collect();
        assert!(shares(&weights(&many), &held(&[])).values().all(|share| *share == 1));
    }

    #[test]
    fn shares_stay_while_a_backend_is_absent() {
        let all = held(&[("a", 3), ("b", 6), ("c", 2)]);
        assert_eq!(shares(&weights(&[("a", 30), ("b", 60)]), &all), held(&[("a", 3), ("b", 6)]));
        assert_eq!(shares(&weights(&[("a", 1), ("b", 2), ("d", 1)]), &all), held(&[("a", 3), ("b", 6), ("d", 3)]));
        assert_eq!(shares(&weights(&[("a", 1), ("b", 3)]), &all), held(&[("a", 1), ("b", 3)]), "the relation changed");
        let all_there = weights(&[("a", 1), ("b", 2), ("c", 1)]);
        assert_eq!(shares(&all_there, &all), held(&[("a", 1), ("b", 2), ("c", 1)]), "none is absent");
        assert_eq!(shares(&weights(&[("x", 5)]), &all), held(&[("x", 1)]), "none is known");
    }
}
