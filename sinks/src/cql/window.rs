//! How many requests are on their way: as many as the cluster answers in time.
//!
//! ```text
//!   answered within SLOW ─► before the first that was not: one more, which doubles it with each window of answers;
//!                           after it a little more: one for each window
//!   answered later       ─► a quarter less, once in SLOW
//!   not answered         ─► half, once in SLOW
//! ```
//!
//! What does not get in waits, and with it the closed time, and with that the dataflow: so a cluster that is slow slows
//! down whoever writes, and is not sent more than it can hold.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

/// An answer that takes longer is one of a cluster that has too much to do.
const SLOW: Duration = Duration::from_millis(100);
const FIRST: f64 = 32.0;
const LEAST: f64 = 4.0;

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Answered after so long.
    After(Duration),
    /// Refused for now, or not answered.
    None,
}

#[derive(Debug)]
struct State {
    limit: f64,
    /// Permits that there are.
    permits: usize,
    cut: Option<Instant>,
}

/// The number of requests that may be on their way.
#[derive(Debug)]
pub(super) struct Window {
    permits: Semaphore,
    state: Mutex<State>,
    most: f64,
}

impl Window {
    pub(super) fn new(most: usize) -> Self {
        let most = (most as f64).max(1.0);
        let limit = FIRST.min(most);
        let permits = limit as usize;
        Window { permits: Semaphore::new(permits), state: Mutex::new(State { limit, permits, cut: None }), most }
    }

    /// Waits until a request may go; `None` never comes.
    pub(super) async fn enter(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.permits.acquire().await.ok()
    }

    /// A request that was let in has ended.
    pub(super) fn leave(&self, permit: Option<SemaphorePermit<'_>>, answer: Answer) {
        let mut state = self.state.lock();
        state.hear(answer, self.most, Instant::now());
        let wanted = state.limit as usize;
        if state.permits > wanted
            && let Some(permit) = permit
        {
            permit.forget();
            state.permits -= 1;
        } else if state.permits < wanted {
            self.permits.add_permits(1);
            state.permits += 1;
        }
    }

    /// How many may be on their way now.
    #[cfg(test)]
    fn limit(&self) -> usize {
        self.state.lock().limit as usize
    }
}

impl State {
    fn hear(&mut self, answer: Answer, most: f64, now: Instant) {
        let share = match answer {
            Answer::After(latency) if latency <= SLOW => {
                let more = if self.cut.is_none() { 1.0 } else { 1.0 / self.limit };
                self.limit = (self.limit + more).min(most);
                return;
            }
            Answer::After(_) => 0.75,
            Answer::None => 0.5,
        };
        // Requests that were sent together tell of one and the same moment.
        if self.cut.is_none_or(|cut| now.duration_since(cut) >= SLOW) {
            self.limit = (self.limit * share).max(LEAST.min(most));
            self.cut = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_while_answers_come_in_time_and_shrinks_when_they_do_not() {
        let window = Window::new(100);
        let answer = |answer| window.leave(window.permits.try_acquire().ok(), answer);
        (0..20_000).for_each(|_| answer(Answer::After(Duration::from_millis(1))));
        assert_eq!((window.limit(), window.permits.available_permits()), (100, 100));
        answer(Answer::None);
        answer(Answer::None);
        assert_eq!(window.limit(), 50, "of one moment");
        (0..100).for_each(|_| answer(Answer::After(SLOW)));
        assert_eq!(window.permits.available_permits(), window.limit());
    }

    #[test]
    fn it_never_closes() {
        let (mut state, mut now) = (State { limit: 8.0, permits: 8, cut: None }, Instant::now());
        for _ in 0..50 {
            state.hear(Answer::None, 100.0, now);
            now += SLOW;
        }
        assert!(state.limit >= LEAST);
    }
}
