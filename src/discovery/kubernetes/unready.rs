//! Pods that became unready one after another until none was ready. Pure.
//!
//! Each of them is absent from the set of ready pods, and its absence would be believed after `hold_down`, until the pod
//! that became unready last is alone. If none is ready, that one is no better than the others: all of them stay in the set
//! then, marked as missing, and no absence is believed before a pod is ready again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::endpoint::{Endpoint, Endpoints};

/// How long before the last pod another one may have become unready to stay with it. A load that moves from each pod to the
/// next ones overloads all of them within this time.
const TOGETHER: Duration = Duration::from_secs(60);

/// When pods were last seen ready.
#[derive(Debug, Default)]
pub(super) struct Unready {
    since: BTreeMap<Arc<str>, Instant>,
}

impl Unready {
    /// Notes that the set of ready pods is `set` from now on, after `before`.
    pub(super) fn note(&mut self, before: &[Endpoint], set: &[Endpoint], now: Instant) {
        let is_ready = |identity: &Arc<str>| set.binary_search_by(|one| one.identity.cmp(identity)).is_ok();
        self.since.retain(|identity, since| !is_ready(identity) && now < *since + TOGETHER);
        for endpoint in before.iter().filter(|endpoint| !endpoint.is_missing && !is_ready(&endpoint.identity)) {
            self.since.insert(Arc::clone(&endpoint.identity), now);
        }
    }

    /// Returns the set for the time in which no pod is ready, if that is another one than `published`: with those of
    /// `unready`, the pods that exist, that were ready a short time ago.
    pub(super) fn joined_to(&self, published: &[Endpoint], unready: Vec<Endpoint>, now: Instant) -> Option<Endpoints> {
        let is_published = |one: &Endpoint| published.binary_search_by(|it| it.identity.cmp(&one.identity)).is_ok();
        let was_ready = |one: &Endpoint| self.since.get(&one.identity).is_some_and(|since| now < *since + TOGETHER);
        let mut set: Vec<Endpoint> = unready.into_iter().filter(|one| !is_published(one) && was_ready(one)).collect();
        if set.is_empty() {
            return None;
        }
        set.iter_mut().for_each(|endpoint| endpoint.is_missing = true);
        set.extend_from_slice(published);
        set.sort_unstable_by(|one, other| one.identity.cmp(&other.identity));
        Some(set.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(identities: &[&str]) -> Vec<Endpoint> {
        identities.iter().map(|identity| Endpoint::new(*identity, None)).collect()
    }

    fn text(set: &[Endpoint]) -> String {
        let text = |it: &Endpoint| format!("{}{}", it.identity, if it.is_missing { "?" } else { "" });
        set.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn pods_that_became_unready_before_the_last_one_stay_with_it() {
        let (mut unready, begin) = (Unready::default(), Instant::now());
        let second = Duration::from_secs(1);
        unready.note(&[], &set(&["a", "b", "c", "d"]), begin);
        unready.note(&set(&["a", "b", "c", "d"]), &set(&["b", "c", "d"]), begin + second);
        unready.note(&set(&["b", "c", "d"]), &set(&["b", "c"]), begin + 40 * second);
        unready.note(&set(&["b", "c"]), &set(&["c"]), begin + 50 * second);
        // `d` ends, so that it is not among the pods that exist. `e` was never ready.
        let exist = || set(&["a", "b", "c", "e"]);
        let joined = |at| unready.joined_to(&set(&["c"]), exist(), begin + at);
        assert_eq!(joined(60 * second).as_deref().map(text), Some("a? b? c".into()));
        assert_eq!(joined(61 * second).as_deref().map(text), Some("b? c".into()));
        assert_eq!(joined(110 * second), None);
        let published = joined(60 * second).expect("another set");
        assert_eq!(unready.joined_to(&published, exist(), begin + 60 * second), None);
    }

    #[test]
    fn a_pod_that_is_ready_again_begins_anew_and_one_that_is_missing_keeps_its_time() {
        let (mut unready, begin) = (Unready::default(), Instant::now());
        let second = Duration::from_secs(1);
        unready.note(&set(&["a", "b"]), &set(&["b"]), begin);
        let missing = unready.joined_to(&set(&["b"]), set(&["a", "b"]), begin).expect("another set");
        unready.note(&missing, &set(&["b"]), begin + 30 * second);
        assert_eq!(unready.joined_to(&set(&["b"]), set(&["a"]), begin + 60 * second), None);
        unready.note(&missing, &set(&["a", "b"]), begin + 31 * second);
        assert_eq!(unready.joined_to(&set(&["b"]), set(&["a"]), begin + 32 * second), None);
    }
}
