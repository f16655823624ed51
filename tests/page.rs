//! Owns the status page from outside: what `/` answers, what `/v1/history` adds up to, and
//! the page in a real browser against a real server.
//!
//! Never: a browser's habits; those are in `page/`, which speaks with `Stage` line by line.
//! Without Chromium, node and npm the browser's part is skipped, loudly; with `CI` set that
//! is a failure.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

#[path = "page/answers.rs"]
mod answers;
#[path = "page/browser.rs"]
mod browser;
#[path = "page/days.rs"]
mod days;
#[path = "page/scenes.rs"]
mod scenes;
#[path = "page/troubled.rs"]
mod troubled;
