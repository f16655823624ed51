//! Owns the words of Roost as types: ids, host, sandbox, operation, event, time.
//!
//! Never: I/O, clocks, SQL, JSON of the wire, imports from any other room.

pub mod endpoint;
pub mod event;
pub mod host;
pub mod id;
pub mod limit;
pub mod networks;
pub mod notify;
pub mod operation;
pub mod order;
pub mod policy;
pub mod probe;
pub mod sandbox;
pub mod template;
pub mod time;

/// A word that is not in a closed vocabulary, with what would have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownWord {
    /// What kind of word was expected, for example `sandbox status`.
    pub what: &'static str,
    /// The word that was found.
    pub found: String,
    /// Every word that would have been accepted.
    pub allowed: &'static [&'static str],
}

impl std::fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unknown {} {:?}; allowed: {}", self.what, self.found, self.allowed.join(", "))
    }
}

impl std::error::Error for UnknownWord {}

/// A closed vocabulary: an enum whose variants have one spelling each, the same in
/// SQL, JSON, docs and metrics.
macro_rules! vocabulary {
    ($(#[$meta:meta])* $name:ident, $what:literal, { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// Every variant, in the order of declaration.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];
            /// The word of every variant, in the same order.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The one spelling of this variant.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::model::UnknownWord;
            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word {
                    $($word => Ok($name::$variant),)+
                    _ => Err($crate::model::UnknownWord {
                        what: $what,
                        found: word.to_owned(),
                        allowed: Self::WORDS,
                    }),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }
    };
}
pub(crate) use vocabulary;
