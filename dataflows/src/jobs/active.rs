//! Who is active, and so has a home timeline.

use feedmill_model::{Activity, Parameters, Time};

use crate::collection::{Rows, distinct};
use crate::expire::expire;

/// Users with a day of activity that is not too long ago.
///
/// Each day of activity leaves at its own minute ([`Parameters::active_until`]), so a user leaves with the last one.
pub(crate) fn active<'scope>(
    activity: Rows<'scope, Activity>,
    start: Time,
    parameters: &Parameters,
) -> Rows<'scope, i64> {
    let parameters = parameters.clone();
    let days = activity.map(move |activity| {
        let user = activity.user_id;
        (parameters.active_until(user, activity.day), user)
    });
    distinct(expire(days, Time::MAX, start, "ExpireActivity", |user| *user), "Active")
}
