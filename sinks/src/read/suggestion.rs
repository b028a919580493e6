//! Whom a viewer may want to follow: accounts followed by those whom the viewer follows.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use feedmill_model::{Parameters, Phase};

use super::candidates::profiles;
use super::home::following;
use super::{CANDIDATES_PER_ITEM, Served, served};
use crate::{List, Profile, ReadError, Views};

/// Accounts followed that suggestions come from, and accounts that are taken from each: the newest.
pub const SUGGESTION_SOURCES_MAX: usize = 200;

/// An account that a viewer may want to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suggestion {
    /// The account.
    pub profile: Arc<Profile>,
    /// How many of the accounts that the viewer follows follow it, as far as was looked.
    pub mutual: usize,
}

/// At most `limit` accounts: those that most of the accounts followed follow, then the greater id. Left out are the viewer,
/// whom the viewer follows or asked to, mutes, blocks or is blocked by, and who is deleted. Protected accounts are
/// suggested: one may ask to follow them.
///
/// It looks at the newest [`SUGGESTION_SOURCES_MAX`] accounts that the viewer follows and as many of each of them, and reads
/// at most `following_max` of the viewer's own, so its work is bounded whomever anyone follows.
pub async fn suggestions(
    views: &dyn Views,
    parameters: &Parameters,
    viewer: i64,
    limit: usize,
) -> Result<Served<Vec<Suggestion>>, ReadError> {
    let time = served(views, &[Phase::Rows, Phase::Facts]);
    let followed = following(views, viewer, parameters.following_max).await?;
    let sources = followed.get(..SUGGESTION_SOURCES_MAX).unwrap_or(&followed);
    let mut lists = Vec::with_capacity(sources.len());
    for source in sources {
        lists.push(views.edges(List::Following, *source, None, SUGGESTION_SOURCES_MAX).await?);
    }
    // By the facts, which are read after the lists: whom the viewer does not follow any more tells nothing.
    let facts = views.relationships(Some(viewer), sources).await?;
    let known: HashSet<i64> = followed.iter().copied().chain([viewer]).collect();
    let mut mutual: HashMap<i64, usize> = HashMap::new();
    let followed_still = facts.iter().map(|facts| facts.following == Some(true) && facts.may_read(false));
    for (list, _) in lists.iter().zip(followed_still).filter(|(_, followed)| *followed) {
        for edge in list.iter().filter(|edge| !known.contains(&edge.id)) {
            *mutual.entry(edge.id).or_default() += 1;
        }
    }
    let mut candidates: Vec<(i64, usize)> = mutual.into_iter().collect();
    candidates.sort_unstable_by_key(|(id, mutual)| Reverse((*mutual, *id)));
    candidates.truncate(limit.saturating_mul(CANDIDATES_PER_ITEM));
    let mut suggestions = Vec::new();
    for candidates in candidates.chunks(limit.max(1)) {
        suggestions.extend(judge(views, viewer, candidates).await?);
        if suggestions.len() >= limit {
            break;
        }
    }
    suggestions.truncate(limit);
    Ok(Served { value: suggestions, time })
}

async fn judge(views: &dyn Views, viewer: i64, candidates: &[(i64, usize)]) -> Result<Vec<Suggestion>, ReadError> {
    let ids: Vec<i64> = candidates.iter().map(|(id, _)| *id).collect();
    let profiles = profiles(views, &ids).await?;
    let facts = views.relationships(Some(viewer), &ids).await?;
    let there = profiles.into_iter().zip(facts).zip(candidates).filter(|((_, facts), _)| {
        facts.following.is_none() && !facts.blocks && !facts.blocked_by && !facts.mutes && !facts.deleted
    });
    Ok(there
        .filter_map(|((profile, _), (_, mutual))| Some(Suggestion { profile: profile?, mutual: *mutual }))
        .collect())
}
