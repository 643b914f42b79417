//! The rules of a hand-off, stated as plainly as possible: which backends get a span while a replica knows several tables.
//! The simulation uses them; they can also check the proxy's own implementation.

use std::time::Duration;

/// A span that arrives later than this after its start may have been held up anywhere, so its arrival counts as well.
pub(crate) const LATE: Duration = Duration::from_secs(15);

/// The most backends that get the same span.
pub(crate) const MOST_TARGETS: usize = 4;

/// What happens to moved slots after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The current owner gets all spans.
    Immediate,
    /// Traces that began before the change stay with their owner.
    Sticky,
    /// A span goes to every owner that its key had within a window before the span's start.
    Dual,
}

/// A mode, its window, and the time by which replicas learn of a change at different times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) mode: Mode,
    pub(crate) window: Duration,
    /// A root span goes to the owners of this time before its start only, since its trace began with it. Only `dual` uses
    /// it.
    pub(crate) skew: Duration,
}

/// A span as the rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// When it started, if that is known.
    pub(crate) start: Option<Duration>,
    /// When it arrived.
    pub(crate) arrival: Duration,
    /// Whether it is the root span of its trace.
    pub(crate) is_root: bool,
}

/// One owner of a key in a replica's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period {
    /// When the replica learned of this owner.
    pub(crate) from: Duration,
    pub(crate) owner: u32,
}

impl Rules {
    /// Returns the backends that get a span, the newest owner first.
    ///
    /// `history` has the owners of the span's key in this replica, oldest first. `begun` is the earliest start of a span of
    /// the same trace that this replica remembers; only `sticky` uses it.
    pub(crate) fn targets(self, history: &[Period], span: Arrived, begun: &mut Option<Duration>) -> Vec<u32> {
        let Arrived { start, arrival, is_root } = span;
        let kept = self.kept(history, arrival);
        // A start in the future counts as now.
        let start = start.map(|start| start.min(arrival));
        match self.mode {
            Mode::Immediate => kept.last().map(|period| period.owner).into_iter().collect(),
            Mode::Sticky => {
                let start = start.unwrap_or(arrival);
                let first = begun.map_or(start, |begun| begun.min(start));
                if kept.len() > 1 {
                    *begun = Some(first);
                }
                let owner = kept.iter().rfind(|period| period.from <= first).or(kept.first());
                owner.map(|period| period.owner).into_iter().collect()
            }
            Mode::Dual => {
                let back = if is_root { self.skew.min(self.window) } else { self.window };
                let (low, high) = match start {
                    None => (Duration::ZERO, arrival),
                    Some(start) if arrival > start + LATE => (start.saturating_sub(back), arrival),
                    Some(start) => (start.saturating_sub(back), start),
                };
                owners_within(kept, low, high)
            }
        }
    }

    /// Returns the part of the history that the replica knows and has not forgotten.
    fn kept(self, history: &[Period], arrival: Duration) -> &[Period] {
        let known = history.partition_point(|period| period.from <= arrival).max(1);
        // A table is forgotten some time after its successor came.
        let is_forgotten = |next: &&Period| next.from + self.window + LATE <= arrival;
        let forgotten = history.iter().take(known).skip(1).take_while(is_forgotten).count();
        history.get(forgotten..known).unwrap_or(history)
    }
}

/// Returns the owners at any instant from `low` to `high`, the newest first. The oldest period has no beginning.
fn owners_within(kept: &[Period], low: Duration, high: Duration) -> Vec<u32> {
    let mut owners = Vec::new();
    let mut end = Duration::MAX;
    for (n, period) in kept.iter().enumerate().rev() {
        let has_begun = n == 0 || period.from <= high;
        if has_begun && end > low && !owners.contains(&period.owner) {
            owners.push(period.owner);
        }
        end = period.from;
    }
    owners.truncate(MOST_TARGETS);
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn history(periods: &[(u64, u32)]) -> Vec<Period> {
        periods.iter().map(|(from, owner)| Period { from: seconds(*from), owner: *owner }).collect()
    }

    fn rules(mode: Mode) -> Rules {
        Rules { mode, window: seconds(30), skew: seconds(10) }
    }

    fn arrived(start: u64, arrival: u64) -> Arrived {
        Arrived { start: Some(seconds(start)), arrival: seconds(arrival), is_root: false }
    }

    /// The targets of a span under `mode` with a window of 30 s, if nothing else is known of its trace.
    fn targets(mode: Mode, periods: &[(u64, u32)], start: u64, arrival: u64) -> Vec<u32> {
        rules(mode).targets(&history(periods), arrived(start, arrival), &mut None)
    }

    #[test]
    fn dual_takes_the_owners_of_the_window_before_the_start() {
        let changed = [(0, 1), (100, 2)];
        for (start, arrival, expected) in [
            (90, 95, vec![1]),
            (90, 104, vec![1]),
            (90, 106, vec![2, 1]),
            (99, 114, vec![1]),
            (100, 101, vec![2, 1]),
            (129, 130, vec![2, 1]),
            (130, 131, vec![2]),
            (120, 146, vec![2]),
            (120, 144, vec![2, 1]),
        ] {
            assert_eq!(targets(Mode::Dual, &changed, start, arrival), expected, "{start} {arrival}");
        }
        // Nothing is known yet of a change at 100 s.
        assert_eq!(targets(Mode::Dual, &changed, 200, 99), [1], "a start in the future");
        let mut many = history(&[(0, 1), (10, 2), (20, 3), (25, 4), (30, 5)]);
        let (rules, unknown) = (rules(Mode::Dual), Arrived { start: None, ..arrived(0, 31) });
        assert_eq!(rules.targets(&many, unknown, &mut None), [5, 4, 3, 2], "the oldest is dropped");
        many.truncate(3);
        assert_eq!(rules.targets(&many, unknown, &mut None), [3, 2, 1], "without a start, all that are kept");
    }

    #[test]
    fn dual_spares_root_spans_that_start_when_all_replicas_know_of_the_change() {
        let of = |start, arrival| {
            let root = Arrived { is_root: true, ..arrived(start, arrival) };
            rules(Mode::Dual).targets(&history(&[(0, 1), (100, 2)]), root, &mut None)
        };
        assert_eq!([of(99, 101), of(109, 110), of(110, 111), of(110, 130)], [vec![1], vec![2, 1], vec![2], vec![2]]);
    }

    #[test]
    fn a_key_that_returns_to_its_owner_has_it_once() {
        assert_eq!(targets(Mode::Dual, &[(0, 1), (10, 2), (13, 1)], 20, 21), [1, 2]);
    }

    #[test]
    fn sticky_keeps_traces_that_began_before_the_change() {
        let changed = [(0, 1), (100, 2)];
        assert_eq!(targets(Mode::Sticky, &changed, 99, 110), [1]);
        assert_eq!(targets(Mode::Sticky, &changed, 100, 110), [2]);
        assert_eq!(targets(Mode::Sticky, &changed, 99, 146), [2], "forgotten");
        let (rules, history) = (rules(Mode::Sticky), history(&changed));
        let mut begun = None;
        let mut of = |start, arrival| rules.targets(&history, arrived(start, arrival), &mut begun);
        assert_eq!(of(101, 102), [2]);
        assert_eq!(of(98, 103), [1]);
        assert_eq!(of(104, 105), [1], "the trace is known to have begun before");
    }

    #[test]
    fn immediate_takes_the_owner_at_arrival() {
        assert_eq!(targets(Mode::Immediate, &[(0, 1), (100, 2)], 90, 99), [1]);
        assert_eq!(targets(Mode::Immediate, &[(0, 1), (100, 2)], 90, 100), [2]);
    }
}
