//! Passwords, hashed by Argon2id.
//!
//! ```text
//!   request ─► waiting (bounded) ─► permit ─► a blocking thread hashes ─► permit is given back by the thread
//! ```
//!
//! A hash takes a core for tens of milliseconds, on purpose. A semaphore bounds how many run at a time, so that sign-ins
//! can never take the cores from reads, and another how many wait, so that a flood is turned away at once. A request that
//! is given up keeps its permit until its hash is done.
//!
//! The parameters are those that OWASP's Password Storage Cheat Sheet asks for: 19 MiB, 2 passes, 1 lane.

use std::sync::Arc;
use std::time::{Duration, Instant};

use argon2::password_hash::SaltString;
use argon2::password_hash::rand_core::OsRng;
use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::Semaphore;

use crate::problem::{Kind, Problem};

/// How long a password waits to be hashed.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// The hash of a password that nobody knows, by the same parameters. What a name without an account is checked against,
/// so that it takes the same work as a name with one.
const NOBODYS: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGhhcyB0aGlz$\
                       mHTnGTrWjdMqJMVNRDQQiLb8iomR1fXsx1rbIMVyBDc";

/// Hashes and checks passwords.
pub(crate) struct Passwords {
    running: Arc<Semaphore>,
    waiting: Semaphore,
    waiting_max: usize,
}

fn argon2() -> Argon2<'static> {
    let params = const {
        match Params::new(19 * 1_024, 2, 1, None) {
            Ok(params) => params,
            Err(_) => Params::DEFAULT,
        }
    };
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

impl Passwords {
    /// At most `at_once` are hashed at a time, and at most `waiting_max` wait for that.
    pub fn new(at_once: usize, waiting_max: usize) -> Self {
        let running = Arc::new(Semaphore::new(at_once.max(1)));
        Passwords { running, waiting: Semaphore::new(waiting_max), waiting_max }
    }

    /// Tells the metrics how many wait.
    pub fn gauge(&self) {
        let waiting = self.waiting_max.saturating_sub(self.waiting.available_permits());
        metrics::gauge!("feedmill_passwords_waiting").set(waiting as f64);
    }

    /// The hash of a new password, in PHC form.
    pub async fn hash(&self, password: String) -> Result<String, Problem> {
        let hash = self.work(move || {
            let salt = SaltString::generate(&mut OsRng);
            argon2().hash_password(password.as_bytes(), &salt).map(|hash| hash.to_string())
        });
        hash.await?.map_err(|error| {
            tracing::error!(%error, "a password could not be hashed");
            Kind::Internal.because("The password could not be hashed.")
        })
    }

    /// Whether `password` is that of `hash`. Without a hash it is not, after the same work.
    pub async fn is_right(&self, password: String, hash: Option<String>) -> Result<bool, Problem> {
        self.work(move || {
            let hash = hash.as_deref().map(PasswordHash::new).and_then(|hash| match hash {
                Ok(hash) => Some(hash),
                Err(error) => {
                    tracing::error!(%error, "a stored password hash cannot be read");
                    None
                }
            });
            let known = hash.is_some();
            let checked = hash.map_or_else(|| PasswordHash::new(NOBODYS), Ok);
            known & checked.is_ok_and(|hash| argon2().verify_password(password.as_bytes(), &hash).is_ok())
        })
        .await
    }

    async fn work<T: Send + 'static>(&self, hash: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
        let busy = || Kind::Busy.because("Too many sign-ins wait. Try again in a moment.");
        let waits = self.waiting.try_acquire().map_err(|_| busy())?;
        let acquired = tokio::time::timeout(WAIT_MAX, Arc::clone(&self.running).acquire_owned()).await;
        let permit = acquired.map_err(|_| busy())?.map_err(|_| busy())?;
        drop(waits);
        let done = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let done = hash();
            metrics::histogram!("feedmill_password_seconds").record(began.elapsed());
            drop(permit);
            done
        });
        done.await.map_err(|error| {
            tracing::error!(%error, "hashing a password did not end");
            Kind::Internal.because("The password could not be checked.")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_right_for_its_own_hash_alone() {
        let passwords = Passwords::new(2, 10);
        let hash = passwords.hash("correct horse".to_owned()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_ne!(hash, passwords.hash("correct horse".to_owned()).await.unwrap(), "salted");
        assert!(passwords.is_right("correct horse".to_owned(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.is_right("correct house".to_owned(), Some(hash)).await.unwrap());
        assert!(!passwords.is_right("correct horse".to_owned(), Some("plain".to_owned())).await.unwrap());
        assert!(!passwords.is_right(String::new(), None).await.unwrap());
    }

    #[test]
    fn an_unknown_name_takes_the_work_of_a_known_one() {
        let nobodys = PasswordHash::new(NOBODYS).unwrap();
        let salt = SaltString::generate(&mut OsRng);
        let ours = argon2().hash_password(b"x", &salt).unwrap();
        assert_eq!((nobodys.algorithm, nobodys.version, &nobodys.params), (ours.algorithm, ours.version, &ours.params));
        assert_eq!(nobodys.hash.map(|hash| hash.len()), ours.hash.map(|hash| hash.len()));
        // It is verified as far as the last byte, instead of being refused for its form.
        let checked = argon2().verify_password(b"nobody has this", &nobodys);
        assert_eq!(checked, Err(argon2::password_hash::Error::Password));
    }

    #[tokio::test]
    async fn a_flood_is_turned_away() {
        let passwords = Passwords::new(1, 0);
        let problem = passwords.hash("x".to_owned()).await.unwrap_err();
        assert_eq!(problem.kind(), Kind::Busy);
    }
}
