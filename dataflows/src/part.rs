//! Which of the views a runtime derives.

use feedmill_model::{Applied, Phase, Relation, Time};

/// A part of the dataflow. What one transaction of likes brings can be millions of rows, and keep a worker for many seconds: with
/// workers of its own it keeps nobody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All views.
    All,
    /// All but what likes bring.
    Main,
    /// What likes bring. Whoever feeds it must not be ahead of the rows that another runtime derives.
    Reactions,
}

impl Part {
    /// Whether it derives what becomes visible in `phase`.
    pub const fn has(self, phase: Phase) -> bool {
        match (self, phase) {
            (Part::All, _) | (Part::Reactions, Phase::Reactions) => true,
            (Part::Main, Phase::Facts | Phase::Rows | Phase::Home | Phase::Search) => true,
            (Part::Main, Phase::Reactions) => false,
            (Part::Reactions, Phase::Facts | Phase::Rows | Phase::Home | Phase::Search) => false,
        }
    }

    /// How far a runtime of it is before it has begun: views of other parts do not keep it.
    pub fn begun(self) -> Applied {
        let begun = |phase| if self.has(phase) { 0 } else { Time::MAX };
        Applied {
            facts: begun(Phase::Facts),
            rows: begun(Phase::Rows),
            home: begun(Phase::Home),
            search: begun(Phase::Search),
            reactions: begun(Phase::Reactions),
        }
    }

    /// What it is derived from, in the order in which it is loaded. It need not be given more.
    pub const fn relations(self) -> &'static [Relation] {
        match self {
            Part::All => &Relation::LOAD_ORDER,
            Part::Main => &[
                Relation::Activity,
                Relation::Popular,
                Relation::Users,
                Relation::Mutes,
                Relation::Blocks,
                Relation::Tweets,
                Relation::Retweets,
                Relation::Follows,
                Relation::ReadMarks,
            ],
            Part::Reactions => {
                &[Relation::Users, Relation::Tweets, Relation::Retweets, Relation::Follows, Relation::Likes]
            }
        }
    }
}
