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

/// A mode and its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) mode: Mode,
    pub(crate) window: Duration,
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
    /// `history` has the owners of the span's key in this replica, oldest first. `start` is the span's start if it is
    /// known. `begun` is the earliest start of a span of the same trace that this replica remembers; only `sticky` uses
    /// it.
    pub(crate) fn targets(
        self,
        history: &[Period],
        start: Option<Duration>,
        arrival: Duration,
        begun: &mut Option<Duration>,
    ) -> Vec<u32> {
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
                let (low, high) = match start {
                    None => (Duration::ZERO, arrival),
                    Some(start) if arrival > start + LATE => (start.saturating_sub(self.window), arrival),
                    Some(start) => (start.saturating_sub(self.window), start),
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

    /// The targets of a span under `mode` with a window of 30 s, if nothing else is known of its trace.
    fn targets(mode: Mode, periods: &[(u64, u32)], start: u64, arrival: u64) -> Vec<u32> {
        let rules = Rules { mode, window: seconds(30) };
        rules.targets(&history(periods), Some(seconds(start)), seconds(arrival), &mut None)
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
        let rules = Rules { mode: Mode::Dual, window: seconds(30) };
        assert_eq!(rules.targets(&many, None, seconds(31), &mut None), [5, 4, 3, 2], "the oldest is dropped");
        many.truncate(3);
        assert_eq!(rules.targets(&many, None, seconds(31), &mut None), [3, 2, 1], "without a start, all that are kept");
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
        let (rules, history) = (Rules { mode: Mode::Sticky, window: seconds(30) }, history(&changed));
        let mut begun = None;
        let mut of = |start, arrival| rules.targets(&history, Some(seconds(start)), seconds(arrival), &mut begun);
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
