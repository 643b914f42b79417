//! Protobuf's wire format: a cursor that cannot over-read, and the sizes of what is written.
