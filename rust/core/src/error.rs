//! Everything the core refuses or fails at.

/// A result of the core.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the core refused or failed. Messages name the value, the expectation and the cure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument has the wrong value or shape: the caller's mistake.
    #[error("{0}")]
    Argument(String),
}

impl Error {
    /// An [`Error::Argument`] from anything printable.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::Argument(message.into())
    }
}
