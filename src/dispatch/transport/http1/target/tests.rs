//! The headers of calls.

use tokio::time::Instant;

use super::*;
use crate::{
    dispatch::transport::tests::{Messages, message},
    otlp::{Framed, Metadata},
};

/// Logs of a client whose headers go on.
struct Forwarded(Messages, Metadata);

impl Contents for Forwarded {
    type Held = ();

    fn signal(&self) -> Signal {
        Signal::Logs
    }

    fn metadata(&self) -> Option<&Metadata> {
        Some(&self.1)
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn payload_len(&self) -> usize {
        self.0.payload_len()
    }

    fn messages(&self) -> impl ExactSizeIterator<Item = &Framed> {
        self.0.messages()
    }

    fn hold(&self) {}
}

#[test]
fn calls_have_the_headers_of_the_pool_and_of_the_client_and_name_this_process() {
    let named = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let access = Access::new("test", None, vec![named("x-cluster", "one")]);
    let address = ([127, 0, 0, 1], 4318).into();
    let target = Target::new(&"127.0.0.1:4318".into(), Some(address), &OtlpHttp::default(), &access);
    let client = [named("x-tenant", "a"), named("x-cluster", "theirs"), named("spanring-hops", "2")];
    let names = ["x-tenant", "x-cluster"].map(HeaderName::from_static);
    let metadata = Metadata::of(&names, &client.into_iter().collect::<HeaderMap>()).unwrap().unwrap();
    let request = target.request(&Forwarded(message(b"logs"), metadata), &Delivery::default()).unwrap();
    assert_eq!(request.uri().path(), "/v1/logs");
    for (name, value) in
        [("x-tenant", "a"), ("x-cluster", "one"), ("spanring-hops", "3"), (INSTANCE_HEADER, instance())]
    {
        let values: Vec<_> = request.headers().get_all(name).iter().collect();
        assert_eq!(values, [value], "{name}");
    }
}
