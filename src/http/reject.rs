//! Owns what the transport itself answers when there is no whole, valid request to hand on.
//!
//! Never: answers for a handler. Made by `parse` and `connection`, written by `response`.

/// Why a request is refused. After each of them the connection closes: where the next
/// request starts is no longer certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reject {
    /// Not HTTP as RFC 9112 has it, or ambiguous.
    Invalid(&'static str),
    /// The request target is longer than `TARGET_BYTES_MAX`.
    TargetTooLong,
    /// The head is larger than `HEAD_BYTES_MAX` or has more than `HEADERS_MAX` headers.
    HeadTooLarge,
    /// The body is, or is announced to be, larger than `body_bytes_max`.
    BodyTooLarge,
    /// Expects something other than `100-continue`.
    Expectation,
    /// A transfer coding other than `chunked`.
    Coding,
    /// A version other than HTTP/1.0 and HTTP/1.1.
    Version,
    /// Did not arrive in time.
    Timeout,
    /// Others hold less, or send faster.
    NoRoom,
}

impl Reject {
    /// Status code.
    pub(super) fn status(self) -> u16 {
        match self {
            Reject::Invalid(_) => 400,
            Reject::TargetTooLong => 414,
            Reject::HeadTooLarge => 431,
            Reject::BodyTooLarge => 413,
            Reject::Expectation => 417,
            Reject::Coding => 501,
            Reject::Version => 505,
            Reject::Timeout => 408,
            Reject::NoRoom => 503,
        }
    }

    /// The word for programs.
    pub(super) fn code(self) -> &'static str {
        match self {
            Reject::Invalid(_) => "invalid_request",
            Reject::TargetTooLong => "target_too_long",
            Reject::HeadTooLarge => "headers_too_large",
            Reject::BodyTooLarge => "payload_too_large",
            Reject::Expectation => "expectation_failed",
            Reject::Coding => "not_implemented",
            Reject::Version => "version_not_supported",
            Reject::Timeout => "timeout",
            Reject::NoRoom => "unavailable",
        }
    }

    /// The words for people.
    pub(super) fn message(self) -> &'static str {
        match self {
            Reject::Invalid(message) => message,
            Reject::TargetTooLong => "request target is too long",
            Reject::HeadTooLarge => "request headers are too large or too many",
            Reject::BodyTooLarge => "request body is too large",
            Reject::Expectation => "the only expectation supported is 100-continue",
            Reject::Coding => "the only transfer coding supported is chunked",
            Reject::Version => "the versions supported are HTTP/1.0 and HTTP/1.1",
            Reject::Timeout => "request did not arrive in time",
            Reject::NoRoom => {
                "too many unfinished requests are held and this one is slow; send it faster, or later"
            }
        }
    }
}
