//! Owns the transport of our HTTP server.
