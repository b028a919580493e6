//! The hot accounts that each active viewer follows: the join that makes hybrid fan-out cheap to read.

use feedmill_model::HomeRecordChange;

use crate::collection::{Index, Rows, Set};

/// The audience of hot authors, as part of the viewers' home records.
pub(crate) fn verified_following<'scope>(
    hot: Set<'scope>,
    audience: Index<'scope, i64>,
) -> Rows<'scope, HomeRecordChange> {
    audience.join_core(hot, |author, viewer, ()| Some(HomeRecordChange::Hot { viewer: *viewer, author: *author }))
}
