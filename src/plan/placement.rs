//! Owns the choice of a host for a new sandbox.
//!
//! Never: reserves anything; the writer calls it in the transaction that inserts the row.
