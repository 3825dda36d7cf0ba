//! Everything the core refuses or fails at.

use std::path::PathBuf;
use std::time::Duration;

/// A result of the core.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the core refused or failed. Messages name the value, the expectation and the cure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument has the wrong value or shape: the caller's mistake.
    #[error("{0}")]
    Argument(String),
    /// A budget holds no plan.
    #[error("{0}")]
    Memory(String),
    /// A weight file that is damaged, cut, hostile or of a kind that is not read.
    #[error("{0}")]
    Checkpoint(String),
    /// The program could not be started.
    #[error("{program} could not be started: {source}")]
    Spawn {
        /// The program, as it was given.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The program ended with an error, or before it had done its work.
    #[error("ffmpeg {how}{}", said.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    Exit {
        /// Exit status, signal, or what was missing.
        how: String,
        /// The end of its standard error.
        said: Option<String>,
    },
    /// The program made the caller wait too long and was killed.
    #[error("ffmpeg took longer than {} s and was stopped; allow more if all else is well", after.as_secs_f64())]
    Deadline {
        /// How long the caller was willing to wait.
        after: Duration,
    },
    /// What the program wrote is not what it was asked for, or beyond the limits.
    #[error("{0}")]
    Stream(String),
    /// A media file that is damaged, cut, or of a kind that is not read.
    #[error("{0}")]
    File(String),
    /// A journal that cannot be kept: its locks or its disk fail.
    #[error("{0}")]
    Journal(String),
    /// The caller stopped the work.
    #[error("stopped on request")]
    Cancelled,
    /// The system refused a read, write, pipe or thread.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// An [`Error::Argument`] from anything printable.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::Argument(message.into())
    }

    /// An [`Error::Checkpoint`] from anything printable.
    pub fn checkpoint(message: impl Into<String>) -> Self {
        Self::Checkpoint(message.into())
    }

    /// For `map_err`: an [`Error::System`] that says what was being done.
    pub fn system<E: Into<std::io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { doing, source: source.into() }
    }
}
