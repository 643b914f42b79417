//! Resolvers against a real name server in the same process, round by round, without sleeping.

mod dns;
mod fixed;
mod manners;
mod resolvers;
mod search;
mod server;
mod task;
