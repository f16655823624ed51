//! Owns the conversation with host agents.
