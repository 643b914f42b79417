//! The fault suite. Each test is named after the row of a list of faults that a proxy of this kind must handle.
//!
//! | rows | fault | where |
//! | --- | --- | --- |
//! | 1 to 5 | a backend dies, hangs, is stopped, is slow, resets | `backends` |
//! | 1, 2, 8, 23 | traces of a failed backend go elsewhere and return | `failover` |
//! | 1, 2, 5, 8 to 13 | the same with backends that are called by OTLP/HTTP | `http_backends`, `dispatch::transport::http1` |
//! | 8 to 12 | a backend refuses temporarily, permanently, in part, or without gRPC | `refusals` |
//! | 6, 7, 31, 32 | GOAWAY, REFUSED_STREAM; floods of HTTP/2 frames | `http2` |
//! | 13 | TLS that is missing, expired, of another authority or for another name | `tls` |
//! | 14 to 17, 19 to 21 | answers of name servers, and who answers | `discovery::tests::dns` (`fault_14` and so on), `dns`, `srv` |
//! | 18 | backends that flap in DNS | `dns`, `discovery::tests::task` |
//! | 22 | the API server is away, forgets or denies | `discovery::kubernetes::tests::faults`, `kubernetes` |
//! | 23 to 26 | all backends are down; restarts, growth, replicas, for clients of OTLP/HTTP | `doors` |
//! | 23 | no backends at the start, for clients of both protocols | `startup` |
//! | 24 to 26 | the same for clients of gRPC | `whole`, `reload`, `ring` (tests of moves), `membership::tests::sequences` |
//! | 27 to 30 | memory, slow clients, huge messages, bombs | `bounds`; for OTLP/HTTP `http::life`, `http::slow`, `http::hostile`, `http::odd` |
//! | 34 to 38 | malformed, deep and unknown protobuf, invalid IDs | `content` |
//! | 33 | smuggling, large heads, pipelining, expectations | `life` (the admin port), `doors`, `http::odd`, `http::hostile` |
//! | 39, 41, 45, 47 | clocks, drain, clients that leave, loops | `life`; for OTLP/HTTP `http::life`, `http::hostile` |
//! | 40 | too few descriptors | `descriptors` |
//!
//! Rows 14 to 22 happen before any request and are the same for all clients. So they are tested without one, or with clients of
//! gRPC.

pub(crate) mod backends;
mod bounds;
mod content;
mod descriptors;
mod doors;
mod failover;
mod heads;
mod http2;
mod life;
mod refusals;
mod strangers;
mod tls;
