//! The fault suite. Each test is named after the row of a list of faults that a proxy of this kind must handle.
//!
//! | rows | fault | where |
//! | --- | --- | --- |
//! | 1 to 5 | a backend dies, hangs, is stopped, is slow, resets | `backends` |
//! | 1, 2, 8, 23 | traces of a failed backend go elsewhere and return | `failover` |
//! | 8 to 12 | a backend refuses temporarily, permanently, in part, or without gRPC | `refusals` |
//! | 6, 7, 31, 32 | GOAWAY, REFUSED_STREAM; floods of HTTP/2 frames | `http2` |
//! | 13 | TLS that is missing, expired, of another authority or for another name | `tls` |
//! | 27 to 30 | memory, slow clients, huge messages, bombs | `bounds` |
//! | 34 to 38 | malformed, deep and unknown protobuf, invalid IDs | `content` |
//! | 33, 39, 41, 45, 47 | smuggling, clocks, drain, clients that leave, loops | `life` |
//! | 40 | too few descriptors | `descriptors` |

pub(crate) mod backends;
mod bounds;
mod content;
mod descriptors;
mod failover;
mod heads;
mod http2;
mod life;
mod refusals;
mod strangers;
mod tls;
