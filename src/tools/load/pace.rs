//! Decides which request is sent next, when it is due, and when the run ends. It reads no clock; the caller passes the
//! time.

use std::time::Duration;

use tokio::time::Instant;

/// Schedule of the requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// A closed loop: a request is sent as soon as an earlier one was answered.
    Closed,
    /// An open loop: requests are sent at a fixed rate, whether or not earlier ones were answered. Latency is measured
    /// from when a request was due.
    Open {
        /// Requests per second.
        rate: f64,
    },
}

/// End of a run: all conditions that are set must be met. Without any, the run does not end by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Until {
    /// Duration of the run, warm-up included.
    pub elapsed: Option<Duration>,
    /// Number of requests sent.
    pub requests: Option<u64>,
}

/// Issues the tickets 0, 1, 2, …
#[derive(Debug)]
pub(crate) struct Tickets {
    pace: Pace,
    until: Until,
    start: Instant,
    /// Tickets are issued in whole groups of this size, so that every trace is complete at the end.
    group: u64,
    next: u64,
    stop_at: Option<u64>,
}

/// One request to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ticket {
    pub(crate) number: u64,
    /// When the request should be sent.
    pub(crate) due: Instant,
}

impl Tickets {
    pub(crate) fn new(pace: Pace, until: Until, group: u64, start: Instant) -> Self {
        Self { pace, until, start, group: group.max(1), next: 0, stop_at: None }
    }

    /// Returns the next ticket, or `None` when the run is over.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Ticket> {
        let due = self.due(self.next).unwrap_or(now);
        if self.stop_at.is_none() && self.is_over(due) {
            self.end();
        }
        if self.stop_at.is_some_and(|stop_at| self.next >= stop_at) {
            return None;
        }
        let number = self.next;
        self.next += 1;
        Some(Ticket { number, due })
    }

    /// Ends the run when the current group is complete.
    pub(crate) fn end(&mut self) {
        let stop_at = self.next.next_multiple_of(self.group);
        self.stop_at.get_or_insert(stop_at);
    }

    /// Returns the number of tickets issued.
    pub(crate) fn taken(&self) -> u64 {
        self.next
    }

    fn due(&self, number: u64) -> Option<Instant> {
        match self.pace {
            Pace::Closed => None,
            #[expect(clippy::cast_precision_loss, reason = "2^53 requests are never sent")]
            Pace::Open { rate } => self.start.checked_add(Duration::try_from_secs_f64(number as f64 / rate).ok()?),
        }
    }

    fn is_over(&self, at: Instant) -> bool {
        let elapsed = self.until.elapsed.is_none_or(|length| at.saturating_duration_since(self.start) >= length);
        let sent = self.until.requests.is_none_or(|requests| self.next >= requests);
        let is_bounded = self.until != Until::default();
        is_bounded && elapsed && sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(pace: Pace, until: Until) -> (Tickets, Instant) {
        let start = Instant::now();
        (Tickets::new(pace, until, 4, start), start)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_an_open_loop_are_due_at_even_intervals_even_if_they_are_late() {
        let until = Until { elapsed: Some(Duration::from_secs(1)), requests: None };
        let (mut tickets, start) = tickets(Pace::Open { rate: 100.0 }, until);
        for n in 0..50 {
            assert_eq!(tickets.take(start).unwrap().due, start + Duration::from_millis(10) * n, "asked early");
        }
        tokio::time::advance(Duration::from_secs(3)).await;
        for n in 50..100 {
            let ticket = tickets.take(Instant::now()).unwrap();
            assert_eq!(
                ticket.due,
                start + Duration::from_millis(10) * n,
                "the due time must not depend on when the ticket is taken"
            );
        }
        assert_eq!(tickets.take(Instant::now()), None, "all requests of this second are issued");
        assert_eq!(tickets.taken(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_ends_with_a_whole_group() {
        let (mut tickets, start) =
            tickets(Pace::Closed, Until { elapsed: Some(Duration::from_secs(1)), requests: None });
        for _ in 0..6 {
            assert!(tickets.take(start).is_some());
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        let now = Instant::now();
        assert_eq!(tickets.take(now).unwrap(), Ticket { number: 6, due: now });
        assert!(tickets.take(now).is_some());
        assert_eq!(tickets.take(now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_with_two_limits_ends_at_the_later_one() {
        let until = Until { elapsed: Some(Duration::from_secs(1)), requests: Some(10) };
        let (mut tickets, start) = tickets(Pace::Closed, until);
        let late = start + Duration::from_secs(5);
        assert_eq!(std::iter::from_fn(|| tickets.take(late)).count(), 12, "ten, and the rest of their group");
        tickets.end();
        assert_eq!(tickets.take(late), None);
    }
}
