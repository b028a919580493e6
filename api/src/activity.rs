//! Notes on which days users do something: who is active has a home timeline.
//!
//! ```text
//!   request ─► noted today? ─► queue (bounded) ─► one task ─► one INSERT for all that wait
//! ```
//!
//! A request is never delayed by its note, and never fails by it: when the queue is full or PostgreSQL is away, the user
//! is forgotten here and noted at a later request. What is remembered saves statements and nothing else, since the row of
//! a user and day is written once, whoever tries.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use feedmill_model::Time;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::database::Database;

/// Users who wait to be noted.
const QUEUE_MAX: usize = 10_000;
/// Users of one statement.
const BATCH_MAX: usize = 1_000;
/// Users who are remembered, at 9 to 18 bytes each.
const REMEMBERED_MAX: usize = 1_000_000;
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);
const DAY_MS: Time = 86_400_000;

/// The day is PostgreSQL's, one clock for all instances. Deleted and unknown users are left out.
/// Only the last day counts, so earlier ones go: the table has a row a user.
const NOTE: &str = "WITH earlier AS (
                        DELETE FROM activity WHERE user_id = ANY($1) AND day < (now() AT TIME ZONE 'UTC')::date
                    )
                    INSERT INTO activity (user_id, day)
                    SELECT id, (now() AT TIME ZONE 'UTC')::date FROM users
                    WHERE id = ANY($1) AND deleted_at IS NULL
                    ON CONFLICT DO NOTHING";

/// Notes users as active.
pub(crate) struct Activity {
    noted: Arc<Mutex<Noted>>,
    queue: mpsc::Sender<i64>,
}

/// Users who were noted on a day.
#[derive(Default)]
struct Noted {
    day: Time,
    users: HashSet<i64>,
}

impl Noted {
    /// Whether `user` was not yet noted on the day of `now`; from now on it was.
    fn is_new(&mut self, user: i64, now: Time) -> bool {
        let day = now / DAY_MS;
        if self.day != day || self.users.len() >= REMEMBERED_MAX {
            *self = Noted { day, users: HashSet::new() };
        }
        self.users.insert(user)
    }

    fn forget(&mut self, users: &[i64]) {
        for user in users {
            self.users.remove(user);
        }
    }
}

impl Activity {
    /// Starts the task that writes; it ends with this.
    pub fn start(database: Database) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let noted = Arc::new(Mutex::new(Noted::default()));
        tokio::spawn(write(database, waiting, Arc::clone(&noted)));
        Activity { noted, queue }
    }

    /// `user` does something now, in milliseconds since 1970.
    pub fn note(&self, user: i64, now: Time) {
        let mut noted = self.noted.lock();
        if noted.is_new(user, now) && self.queue.try_send(user).is_err() {
            noted.forget(&[user]);
        }
    }
}

async fn write(database: Database, mut waiting: mpsc::Receiver<i64>, noted: Arc<Mutex<Noted>>) {
    let mut users = Vec::new();
    while waiting.recv_many(&mut users, BATCH_MAX).await > 0 {
        if let Err(error) = database.query(NOTE, &[&users]).await {
            tracing::warn!(%error, users = users.len(), "activity could not be noted, and will be at a later request");
            noted.lock().forget(&users);
            tokio::time::sleep(PAUSE).await;
        }
        users.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_new_once_a_day_and_again_when_forgotten() {
        let mut noted = Noted::default();
        let midnight = 20_000 * DAY_MS;
        assert!(noted.is_new(7, midnight - 1) && !noted.is_new(7, midnight - 1) && noted.is_new(8, midnight - 1));
        assert!(noted.is_new(7, midnight) && !noted.is_new(7, midnight + DAY_MS - 1));
        noted.forget(&[7, 9]);
        assert!(noted.is_new(7, midnight));
        assert_eq!(noted.users.len(), 1);
    }
}
