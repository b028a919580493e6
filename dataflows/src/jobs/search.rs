//! What search finds: tweets and accounts that were not deleted.

use std::rc::Rc;

use feedmill_model::{Document, Tweet, User};

use crate::collection::Rows;

/// The document of each tweet and each account.
pub(crate) fn search<'scope>(tweets: Rows<'scope, Rc<Tweet>>, users: Rows<'scope, Rc<User>>) -> Rows<'scope, Document> {
    let tweets = tweets.flat_map(|tweet| Document::of_tweet(&tweet));
    tweets.concat(users.flat_map(|user| Document::of_account(&user)))
}
