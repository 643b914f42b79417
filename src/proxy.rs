//! Assembly: configuration → every part wired, started and drained in order. The only file that knows everyone.
