//! Finds the points that answer given questions, without keeping the others: of all points between two questions, only
//! the first can be an answer.
//!
//! Points come in the order of the backends, which is random on the ring. To look up the questions around each of them
//! would take a few misses of the processor's caches for each of millions of points. So the points are collected, and
//! each time that there are enough of them, they are sorted and compared with all questions in one pass. After that, most
//! further points are known to be of no use: they are not between a question and the first point after it so far.

use super::ring::{Point, TOGETHER};

/// The number of points that are sorted at a time, at most. They take 4 MiB.
const AT_A_TIME: usize = 1 << 18;

/// The number of leading bits of a hash that [`Nearest::open`] has a bit for. The bits take 128 KiB.
const LEADING: u32 = 20;

/// No point: it is greater than each.
const NONE: Point = Point { hash: u64::MAX, backend: u16::MAX };

/// The first point after each question.
pub(super) struct Nearest {
    /// The places of the questions on the ring, ascending.
    questions: Vec<u64>,
    /// By the number of questions up to a point, the first such point. The one before all questions comes first: it
    /// answers the last question if no point follows that.
    firsts: Vec<Point>,
    /// Points that were not compared yet, in any order.
    collected: Vec<Point>,
    /// By the leading bits of a hash, whether such a point can still be a first one.
    open: Vec<u64>,
}

// === impl Nearest ===

impl Nearest {
    /// Prepares for `questions`, by their places on the ring.
    pub(super) fn new(mut questions: Vec<u64>) -> Self {
        questions.sort_unstable();
        questions.dedup();
        let firsts = vec![NONE; questions.len() + 1];
        let open = vec![u64::MAX; 1 << (LEADING - u64::BITS.ilog2())];
        Self { questions, firsts, collected: Vec::with_capacity(AT_A_TIME), open }
    }

    /// Notes points. Their order does not matter.
    pub(super) fn add(&mut self, points: &[Point]) {
        for points in points.chunks(TOGETHER) {
            // Which points can be of use is as good as random, so there is no branch for it: each is written, and the next
            // one takes the place of one that is of no use.
            let (mut of_use, mut count) = ([NONE; TOGETHER], 0);
            for point in points {
                let (word, bit) = place_of(point.hash);
                if let Some(place) = of_use.get_mut(count) {
                    *place = *point;
                }
                count += usize::from(self.open.get(word).is_none_or(|word| word & bit != 0));
            }
            if self.collected.len() + count > AT_A_TIME {
                self.compare();
            }
            self.collected.extend_from_slice(of_use.get(..count).unwrap_or_default());
        }
    }

    /// Returns the points that answer a question, sorted, and the first of all.
    pub(super) fn into_points(mut self) -> Vec<Point> {
        self.compare();
        self.firsts.retain(|point| *point != NONE);
        self.firsts
    }

    /// Compares the collected points with the questions, and notes which others can still be first ones.
    fn compare(&mut self) {
        self.collected.sort_unstable();
        let mut before = 0;
        for point in self.collected.drain(..) {
            while self.questions.get(before).is_some_and(|question| *question <= point.hash) {
                before += 1;
            }
            if let Some(first) = self.firsts.get_mut(before) {
                *first = point.min(*first);
            }
        }
        self.open.fill(0);
        let ends = self.questions.iter().copied().chain([u64::MAX]);
        let begins = [0].into_iter().chain(self.questions.iter().copied());
        for ((begin, end), first) in begins.zip(ends).zip(&self.firsts) {
            let [begin, end] = [begin, end.min(first.hash)].map(|hash| hash >> (u64::BITS - LEADING));
            for leading in begin..=end {
                let (word, bit) = place_of(leading << (u64::BITS - LEADING));
                if let Some(word) = self.open.get_mut(word) {
                    *word |= bit;
                }
            }
        }
    }
}

/// Returns the word of [`Nearest::open`] for a hash, and its bit there.
fn place_of(hash: u64) -> (usize, u64) {
    let leading = hash >> (u64::BITS - LEADING);
    (usize::try_from(leading / u64::from(u64::BITS)).unwrap_or(usize::MAX), 1 << (leading % u64::from(u64::BITS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(questions: &[u64], points: &[u64]) -> Vec<u64> {
        let mut nearest = Nearest::new(questions.to_vec());
        points.iter().for_each(|hash| nearest.add(&[Point { hash: *hash, backend: 0 }]));
        nearest.into_points().into_iter().map(|point| point.hash).collect()
    }

    #[test]
    fn only_the_first_point_after_a_question_is_kept_and_the_first_of_all() {
        assert_eq!(kept(&[10, 20, 30], &[25, 7, 5, 21, 22, 10, 12, 30, u64::MAX]), [5, 10, 21, 30]);
        assert_eq!(kept(&[10, 20], &[40, 30]), [30], "no point between two questions: both have the same answer");
        assert_eq!(kept(&[u64::MAX, 0], &[3, 2]), [2], "the last question is answered by the first point");
        assert!(kept(&[1], &[]).is_empty());
        assert_eq!(kept(&[], &[9, 4]), [4]);
    }

    #[test]
    fn the_lowest_backend_has_the_point_of_two() {
        let mut nearest = Nearest::new(vec![1]);
        nearest.add(&[2, 1, 3].map(|backend| Point { hash: 5, backend }));
        assert_eq!(nearest.into_points(), [Point { hash: 5, backend: 1 }]);
    }

    #[test]
    fn points_are_found_among_many_questions() {
        let mut random = fastrand::Rng::with_seed(3);
        let questions: Vec<u64> = (0..1000).map(|_| random.u64(..)).collect();
        let mut points: Vec<u64> = (0..3000).map(|_| random.u64(..)).collect();
        let found = kept(&questions, &points);
        points.sort_unstable();
        let answer = |among: &[u64], question: u64| *among.iter().find(|hash| **hash >= question).unwrap_or(&among[0]);
        assert!(found.len() < 1002 && questions.iter().all(|it| answer(&found, *it) == answer(&points, *it)));
    }

    #[test]
    fn once_points_were_compared_only_those_are_collected_that_can_be_first_ones() {
        let point = |leading: u64| Point { hash: leading << (u64::BITS - LEADING), backend: 0 };
        let mut nearest = Nearest::new([100, 5_000].map(|leading| point(leading).hash).to_vec());
        nearest.add(&[50, 200, 5_100].map(point));
        nearest.compare();
        for leading in 0..8_000 {
            nearest.add(&[point(leading)]);
            let can_be_first = matches!(leading, 0..=50 | 100..=200 | 5_000..=5_100);
            assert_eq!(nearest.collected.drain(..).len() == 1, can_be_first, "{leading}");
        }
    }

    #[test]
    fn points_are_compared_before_more_are_collected_than_there_is_room_for() {
        let mut nearest = Nearest::new(Vec::new());
        let room = nearest.collected.capacity();
        // Each point comes before all others so far, and one more than a multiple of those that are added together.
        let mut hashes = (0..u64::MAX).rev();
        let mut points = |count: usize| -> Vec<Point> {
            hashes.by_ref().take(count).map(|hash| Point { hash, backend: 0 }).collect()
        };
        nearest.add(&points(1));
        nearest.add(&points(AT_A_TIME + TOGETHER));
        assert_eq!((nearest.collected.capacity(), nearest.into_points().len()), (room, 1));
    }
}
