//! Hot accounts: their entries are merged at read instead of being pushed.

use std::rc::Rc;

use feedmill_model::{Popular, User};

use crate::collection::{Rows, distinct};

/// Verified accounts that were not deleted, and popular ones.
pub(crate) fn hot<'scope>(users: Rows<'scope, Rc<User>>, popular: Rows<'scope, Popular>) -> Rows<'scope, i64> {
    let verified = users.filter(|user| user.verified && user.deleted_at.is_none()).map(|user| user.id);
    distinct(verified.concat(popular.map(|popular| popular.user_id)), "Hot")
}
