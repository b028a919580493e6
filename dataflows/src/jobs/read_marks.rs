//! Up to where users have read their notifications.

use feedmill_model::{ReadMark, ViewRow};

use crate::collection::Rows;

/// The row of each.
pub(crate) fn read_marks(marks: Rows<'_, ReadMark>) -> Rows<'_, ViewRow> {
    marks.map(|ReadMark { user_id: user, notifications_id: read }| ViewRow::ReadMark { user, read })
}
