//! A user's row, and the way from a name to it.

use std::rc::Rc;

use feedmill_model::{User, ViewRow};

use crate::collection::Rows;

/// The profile and the name of each account that was not deleted.
///
/// Names are ASCII (the source checks them), so lower case is the same here as in PostgreSQL, whatever its locale.
pub(crate) fn profile(users: Rows<'_, Rc<User>>) -> Rows<'_, ViewRow> {
    users.flat_map(|user| {
        let rows = user.deleted_at.is_none().then(|| {
            let name = user.username.to_ascii_lowercase();
            [ViewRow::Username { name, user: user.id }, ViewRow::Profile(Box::new(User::clone(&user)))]
        });
        rows.into_iter().flatten()
    })
}
