//! The graph that load is put on: seeded, so that the same settings always give the same one.
//!
//! ```text
//!   ids   1 … authors            post; their followers are log-normal, so a few have many and most have few
//!         authors + 1 … + hot    verified, so merged at read; each has one user of 20 as follower, and old posts
//!         the rest               only read
//! ```
//!
//! The followers of all authors together are exactly `authors × followers`, and authors post in rounds in which each posts
//! once, in an order that is drawn anew: so a post has `followers` pushed followers on average, over each round exactly,
//! whatever the distribution is. What belongs to one author is drawn from a generator of its own, so it can be drawn again
//! at any time: nothing but the number of followers is kept.

use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::ensure;
use rand::seq::{SliceRandom, index};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal};

/// One user of so many follows a hot account.
const HOT_EVERY: u64 = 20;
/// Width of the distribution: the mean is 1.6 times the median, and one author of 100 has more than 6 times the mean.
const SIGMA: f64 = 1.0;
/// Goes up when other settings or the same ones give another graph.
const VERSION: u32 = 1;

/// What decides what the graph is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// All accounts.
    pub users: u64,
    /// Those who post.
    pub authors: u64,
    /// Mean followers of an author.
    pub followers: u64,
    /// Verified accounts.
    pub hot: u64,
    /// Followers that no author has more of: one who had would become popular, and would not be pushed.
    pub followers_max: u64,
    /// Of the random numbers.
    pub seed: u64,
}

/// The graph.
#[derive(Debug)]
pub struct Graph {
    plan: Plan,
    /// Followers of each author.
    followers: Vec<u64>,
}

impl Graph {
    /// Draws the graph.
    pub fn new(plan: Plan) -> anyhow::Result<Self> {
        let Plan { users, authors, followers, hot, .. } = plan;
        ensure!(authors > 0, "--authors is 0, but somebody must post");
        ensure!(followers > 0, "--followers is 0, but a post must be delivered to somebody");
        ensure!(
            users > authors + hot && users <= u64::from(u32::MAX),
            "--users is {users}, but must be more than --authors and --hot together ({}), and below 2^32",
            authors + hot
        );
        let most = plan.followers_max.min(users - 1);
        ensure!(
            followers <= most,
            "--followers is {followers}, but an author cannot have more than {most}: there are {users} users, and one with \
             --hot-followers would not be pushed"
        );
        Ok(Graph { plan, followers: degrees(&plan, most)? })
    }

    /// What it was drawn from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// A name for the graph, which differs for another one.
    pub fn name(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (VERSION, self.plan).hash(&mut hasher);
        format!("load-{:016x}", hasher.finish())
    }

    /// Ids of the hot accounts.
    pub fn hot(&self) -> std::ops::RangeInclusive<i64> {
        let first = self.plan.authors + 1;
        first.cast_signed()..=(self.plan.authors + self.plan.hot).cast_signed()
    }

    /// One who neither posts nor is followed.
    pub fn reader(&self) -> i64 {
        self.plan.users.cast_signed()
    }

    /// Number of all follows.
    pub fn follows(&self) -> u64 {
        let authors: u64 = self.followers.iter().sum();
        authors + self.hot().map(|hot| self.followers_of(hot).len() as u64).sum::<u64>()
    }

    /// How many followers an author has; 0 for one who is not an author.
    pub fn follower_count(&self, author: i64) -> u64 {
        let at = author.checked_sub(1).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.followers.get(at)).copied().unwrap_or(0)
    }

    /// Followers of an account, each once, in no order; the same ones at each call.
    pub fn followers_of(&self, account: i64) -> Vec<i64> {
        let users = self.plan.users.cast_signed();
        if self.hot().contains(&account) {
            let every = HOT_EVERY.cast_signed();
            return (1..=users).filter(|user| user % every == account % every && *user != account).collect();
        }
        let count = self.follower_count(account);
        // All users but the author: those from its own id on are the next ones.
        let drawn = index::sample(&mut self.generator(account), (users - 1) as usize, count as usize);
        drawn.into_iter().map(|at| at as i64 + 1).map(|user| if user < account { user } else { user + 1 }).collect()
    }

    /// One follower of an author.
    pub fn follower_of(&self, author: i64, rng: &mut impl Rng) -> Option<i64> {
        let followers = self.followers_of(author);
        followers.get(rng.random_range(0..followers.len().max(1))).copied()
    }

    /// The generator of what belongs to one account; stream 0 is that of the graph.
    fn generator(&self, account: i64) -> ChaCha8Rng {
        let mut generator = ChaCha8Rng::seed_from_u64(self.plan.seed);
        generator.set_stream(account.cast_unsigned());
        generator
    }
}

/// Followers of each author: log-normal, at least 1, at most `most`, and `followers` on average exactly.
fn degrees(plan: &Plan, most: u64) -> anyhow::Result<Vec<u64>> {
    let wanted = plan.authors * plan.followers;
    let mu = (plan.followers as f64).ln() - SIGMA * SIGMA / 2.0;
    let distribution = LogNormal::new(mu, SIGMA)?;
    let mut generator = ChaCha8Rng::seed_from_u64(plan.seed);
    let drawn: Vec<f64> = (0..plan.authors).map(|_| distribution.sample(&mut generator)).collect();
    let scale = wanted as f64 / drawn.iter().sum::<f64>();
    let mut degrees: Vec<u64> = drawn.iter().map(|drawn| ((drawn * scale) as u64).clamp(1, most)).collect();
    // What rounding and the limits took or gave is spread evenly. It ends: `wanted` lies between all 1 and all `most`.
    let mut sum: u64 = degrees.iter().sum();
    while sum != wanted {
        for degree in &mut degrees {
            if sum < wanted && *degree < most {
                *degree += 1;
                sum += 1;
            } else if sum > wanted && *degree > 1 {
                *degree -= 1;
                sum -= 1;
            }
        }
    }
    Ok(degrees)
}

/// Who posts next: rounds in which each author posts once, in a new order.
#[derive(Debug)]
pub struct Rounds {
    order: Vec<i64>,
    next: usize,
    generator: ChaCha8Rng,
}

impl Rounds {
    /// Rounds of the authors of a plan.
    pub fn new(plan: &Plan) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(plan.seed);
        generator.set_stream(u64::MAX);
        Rounds { order: (1..=plan.authors.cast_signed()).collect(), next: usize::MAX, generator }
    }
}

impl Iterator for Rounds {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        if self.next >= self.order.len() {
            self.order.shuffle(&mut self.generator);
            self.next = 0;
        }
        let author = self.order.get(self.next).copied();
        self.next += 1;
        author
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PLAN: Plan = Plan { users: 5_000, authors: 500, followers: 200, hot: 5, followers_max: 9_999, seed: 7 };

    #[test]
    fn a_post_has_the_mean_number_of_followers_over_each_round() {
        for (followers, followers_max, seed) in [(200, 9_999, 1), (200, 250, 2), (1, 10, 3), (4_999, 9_999, 4)] {
            let plan = Plan { followers, followers_max, seed, ..PLAN };
            let graph = Graph::new(plan).unwrap();
            let mut authors = Rounds::new(&plan);
            for _ in 0..3 {
                let pushed: usize = authors.by_ref().take(500).map(|author| graph.followers_of(author).len()).sum();
                assert_eq!(pushed as u64, 500 * followers);
            }
            assert!(graph.followers.iter().all(|count| (1..=followers_max).contains(count)));
        }
    }

    #[test]
    fn followers_are_log_normal() {
        let graph = Graph::new(Plan { users: 100_000, authors: 10_000, ..PLAN }).unwrap();
        let mut sorted = graph.followers.clone();
        sorted.sort_unstable();
        // The median of a log-normal is the mean / exp(sigma² / 2), and 84.13 % lie below exp(sigma) times the median.
        let median = sorted[5_000] as f64;
        assert!((median / 121.3 - 1.0).abs() < 0.05, "{median}");
        let above = sorted[8_413] as f64 / median;
        assert!((above / 1_f64.exp() - 1.0).abs() < 0.08, "{above}");
    }

    #[test]
    fn the_same_plan_gives_the_same_graph_and_another_another() {
        let (one, same) = (Graph::new(PLAN).unwrap(), Graph::new(PLAN).unwrap());
        let other = Graph::new(Plan { seed: 8, ..PLAN }).unwrap();
        assert_eq!(one.name(), same.name());
        assert_ne!(one.name(), other.name());
        for account in 1..=505 {
            assert_eq!(one.followers_of(account), same.followers_of(account));
        }
        assert_ne!(one.followers_of(1), other.followers_of(1));
        assert_eq!(Rounds::new(&PLAN).take(700).collect::<Vec<_>>(), Rounds::new(&PLAN).take(700).collect::<Vec<_>>());
    }

    #[test]
    fn followers_are_distinct_others_of_the_users() {
        let graph = Graph::new(PLAN).unwrap();
        let mut all = 0;
        for account in 1..=505 {
            let followers = graph.followers_of(account);
            let distinct: BTreeSet<i64> = followers.iter().copied().collect();
            assert_eq!(distinct.len(), followers.len());
            assert!(!distinct.contains(&account));
            assert!(distinct.iter().all(|user| (1..=5_000).contains(user)));
            all += followers.len() as u64;
        }
        assert_eq!(all, graph.follows());
        assert_eq!(graph.hot().collect::<Vec<_>>(), [501, 502, 503, 504, 505]);
        assert!(graph.followers_of(501).len() >= 249);
        assert!(graph.followers_of(graph.reader()).is_empty());
    }

    #[test]
    fn settings_that_give_no_graph_are_refused() {
        for plan in [
            Plan { authors: 0, ..PLAN },
            Plan { followers: 0, ..PLAN },
            Plan { users: 505, ..PLAN },
            Plan { followers: 300, followers_max: 299, ..PLAN },
            Plan { followers: 5_000, ..PLAN },
        ] {
            assert!(Graph::new(plan).is_err(), "{plan:?}");
        }
    }
}
