//! Tests of dispatch against scripted backends.
