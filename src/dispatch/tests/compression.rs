//! Tests of the encodings of calls: which parts share one, and which requests go on as they came.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    codec::{self, Encoding},
    dispatch::{
        Join, Part,
        queue::{Batch, Queue, Rules},
        queued::Queued,
        transport::Contents,
    },
    otlp::{Metadata, framed::PREFIX_LEN},
    settings::Compression,
    testing::{large_part, part, with_keys},
};

const KINDS: [Option<Encoding>; 3] = [None, Some(Encoding::Gzip), Some(Encoding::Zstd)];

struct Bench {
    queue: Queue,
    join: Join,
    start: Instant,
}

impl Bench {
    fn new(compression: Compression) -> Self {
        Self::carrying(compression, None)
    }

    fn carrying(compression: Compression, metadata: Option<Arc<Metadata>>) -> Self {
        let start = Instant::now();
        let join = Join::carrying(start + Duration::from_secs(10), Arc::default(), metadata);
        Self { queue: Queue::new(Rules::new(&with_keys(|keys| keys.compression = compression))), join, start }
    }

    fn push(&mut self, part: Part) {
        self.queue.push(Queued::from_part(part, self.join.inbox(), self.start));
    }

    /// Takes all calls.
    fn take(&mut self) -> Vec<Batch> {
        let (now, mut dropped) = (self.start + Duration::from_secs(1), Vec::new());
        std::iter::from_fn(|| self.queue.take(now, &mut dropped)).collect()
    }
}

/// A part of a request that came in this encoding.
fn came_in(encoding: Option<Encoding>, part: Part) -> Part {
    Part { encoding, ..part }
}

/// A part that is all of its request.
fn whole(encoding: Encoding, part: Part) -> Part {
    let payload = part.message.payload();
    let original = codec::compress(encoding, 6, [payload.as_ref()].into_iter(), payload.len()).unwrap();
    Part { encoding: Some(encoding), original: Some(original), ..part }
}

#[test]
fn parts_share_a_call_with_those_of_the_same_encoding_only_where_that_matters() {
    for (compression, calls) in [
        (Compression::None, vec![(None, 9)]),
        (Compression::Gzip, vec![(Some(Encoding::Gzip), 9)]),
        (Compression::AsReceived, KINDS.map(|kind| (kind, 3)).to_vec()),
    ] {
        let name = http::HeaderName::from_static("x-tenant");
        let headers = [(name.clone(), http::HeaderValue::from_static("one"))].into_iter().collect();
        for metadata in [None, Metadata::of(&[name], &headers).unwrap().map(Arc::new)] {
            let mut bench = Bench::carrying(compression, metadata);
            for kind in [KINDS; 3].concat() {
                bench.push(came_in(kind, part(&["a"], 0)));
            }
            let mut taken: Vec<_> =
                bench.take().iter().map(|batch| (batch.encoding(compression), batch.parts.len())).collect();
            taken.sort_by_key(|(encoding, _)| encoding.map(Encoding::as_str));
            assert_eq!(taken, calls, "{compression:?}");
        }
    }
    let mut bench = Bench::new(Compression::AsReceived);
    for kind in [Encoding::Deflate, Encoding::Snappy, Encoding::Gzip] {
        bench.push(came_in(Some(kind), part(&["a"], 0)));
    }
    let [batch] = &bench.take()[..] else { panic!("what is only read becomes gzip") };
    assert_eq!((batch.encoding(Compression::AsReceived), batch.parts.len()), (Some(Encoding::Gzip), 3));
}

#[test]
fn a_long_request_goes_on_as_it_came_in_a_call_of_its_own() {
    for compression in [Compression::Zstd, Compression::AsReceived] {
        let mut bench = Bench::new(compression);
        let long = whole(Encoding::Zstd, large_part(10, 1_000, 0));
        let original = long.original.clone();
        (0..3).for_each(|_| bench.push(long.clone()));
        (0..3).for_each(|_| bench.push(came_in(Some(Encoding::Zstd), part(&["short"], 0))));
        let taken = bench.take();
        let alone = taken.iter().filter(|batch| batch.as_it_came(Encoding::Zstd) == original).count();
        assert_eq!((alone, taken.len()), (3, 4), "the short ones share a call");
    }
}

/// A call of its own for each would take a place of each for as long as a slow backend needs for any call.
#[test]
fn long_requests_share_a_call_if_more_of_them_wait_than_there_are_places() {
    let mut bench = Bench::new(Compression::Zstd);
    let long = whole(Encoding::Zstd, large_part(10, 1_000, 0));
    (0..200).for_each(|_| bench.push(long.clone()));
    let taken = bench.take();
    let parts: usize = taken.iter().map(|batch| batch.parts.len()).sum();
    assert!(parts == 200 && taken.len() < 40, "{} calls of {parts} parts", taken.len());
    assert_eq!(taken[0].as_it_came(Encoding::Zstd), None);
}

#[test]
fn short_requests_share_a_call_and_a_lone_one_goes_on_as_it_came() {
    let mut bench = Bench::new(Compression::Gzip);
    let short = whole(Encoding::Gzip, part(&["a"], 0));
    bench.push(short.clone());
    let [batch] = &bench.take()[..] else { panic!("one call") };
    assert_eq!(batch.as_it_came(Encoding::Gzip), short.original);
    bench.push(short.clone());
    bench.push(short);
    let [batch] = &bench.take()[..] else { panic!("one call") };
    assert_eq!((batch.parts.len(), batch.as_it_came(Encoding::Gzip)), (2, None));
}

/// A part that waits while its pool is changed is tried again in another encoding.
#[test]
fn a_pool_of_another_encoding_does_not_get_what_came() {
    let part = whole(Encoding::Gzip, large_part(10, 1_000, 0));
    for (compression, encoding) in [(Compression::Zstd, Encoding::Zstd), (Compression::None, Encoding::Gzip)] {
        let mut bench = Bench::new(compression);
        bench.push(part.clone());
        bench.push(part.clone());
        let [batch] = &bench.take()[..] else { panic!("they can share a call") };
        assert_eq!((batch.parts.len(), batch.as_it_came(encoding)), (2, None));
        let mut bench = Bench::new(compression);
        bench.push(part.clone());
        let original = bench.take()[0].as_it_came(Encoding::Zstd);
        assert_eq!(original, None::<Bytes>);
    }
    assert!(part.original.is_some_and(|original| original.len() > PREFIX_LEN));
}
