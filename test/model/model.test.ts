import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { canReach, explore, first, firstOf, type Model } from './explore.ts';
import { allHeads, type LogMistake, LogModel, type LogRules } from './log.ts';
import { type VoteMistake, VoteModel, type VoteRules, type VoteState } from './votes.ts';

/**
 * The vote rule, explored whole (docs/protocol/admission.md). `HYPERMESH_MODEL=large` takes the larger bounds: about a minute and 2 GiB.
 */
const isLarge = process.env['HYPERMESH_MODEL'] === 'large';
const FOUR = { validators: 4, dishonest: 1 } as const;
const SEVEN = { validators: 7, dishonest: 2 } as const;

const VOTES: readonly VoteRules[] = [
  { ...FOUR, epochs: 1, equivocates: false },
  { ...FOUR, epochs: 1, equivocates: true },
  { ...FOUR, epochs: 2, equivocates: false },
  { ...FOUR, epochs: 2, equivocates: true },
  { ...SEVEN, epochs: 1, equivocates: true },
  ...(isLarge
    ? [
        { ...FOUR, epochs: 3, equivocates: true },
        { ...SEVEN, epochs: 2, equivocates: true },
      ]
    : []),
];

/** One entry, and after it one of two. */
const FORK = ['X', 'XX', 'XY'];

const LOGS: readonly LogRules[] = [
  { ...FOUR, heads: ['X', 'XX', 'XXX'], views: 0, sequencer: 'orderly' },
  { ...FOUR, heads: allHeads(2), views: 0, sequencer: 'lying' },
  { ...FOUR, heads: allHeads(1), views: 2, sequencer: 'lying' },
  { ...FOUR, heads: FORK, views: 1, sequencer: 'lying' },
  { ...SEVEN, heads: allHeads(1), views: 1, sequencer: 'lying' },
  ...(isLarge ? ([{ ...FOUR, heads: allHeads(2), views: 1, sequencer: 'lying' }] as const) : []),
];

describe('the vote rule', () => {
  for (const rules of VOTES) {
    const { validators, epochs, equivocates } = rules;
    const publisher = equivocates ? 'a publisher who signed two operations' : 'an honest publisher';
    describe(`with ${validators} validators in ${epochs} epochs, for ${publisher}`, () => {
      const model = new VoteModel(rules);
      const explored = explore(model);

      it('never gives two certificates that conflict, and no honest validator votes twice', (t) => {
        t.diagnostic(`${explored.states.size} states`);
        assert.equal(
          first(explored, (state) => model.hasConflict(state)),
          undefined,
        );
        assert.equal(
          first(explored, (state) => model.hasDoubleVote(state)),
          undefined,
        );
      });

      it('goes on, whatever happened, once a quorum is honest and connected; only a publisher can stand in its own way', () => {
        const admits = canReach<VoteState>(
          { key: (state) => model.key(state), actions: (state) => model.helpful(state, { endsEpochs: false }) },
          (state) => model.isAdmitted(state),
        );
        assert.equal(
          first(explored, (state) => !admits(state) && !model.isContested(state)),
          undefined,
        );
        if (!equivocates)
          assert.equal(
            first(explored, (state) => model.isContested(state)),
            undefined,
          );
      });

      it('settles an operation that is stuck with the next epoch', () => {
        const settles = canReach<VoteState>(
          { key: (state) => model.key(state), actions: (state) => model.helpful(state, { endsEpochs: true }) },
          (state) => model.isAdmitted(state) || model.isBarred(state),
        );
        assert.equal(
          first(explored, (state) => state.epoch + 1 < epochs && !settles(state)),
          undefined,
        );
      });
    });
  }

  const mistakes: Readonly<Record<VoteMistake, number>> = {
    'a quorum of 2f': 1,
    'the vote is stored after it was sent': 1,
    'nothing is handed over': 2,
    'what has a certificate is not handed over': 2,
    'handed over while still voting': 2,
    'of two operations one wins': 2,
    'handed over for one epoch only': 3,
  };
  for (const [mistake, epochs] of Object.entries(mistakes) as [VoteMistake, number][]) {
    const skip = epochs > 2 && !isLarge && 'three epochs are explored with HYPERMESH_MODEL=large';
    it(`would not hold if ${mistake}: the exploration finds how`, { skip }, (t) => {
      const model = new VoteModel({ ...FOUR, epochs, equivocates: true, mistake });
      const how = firstOf(model, (state) => model.hasConflict(state));
      assert.ok(how);
      t.diagnostic(how);
    });
  }
});

describe('the votes for heads of the log', () => {
  for (const rules of LOGS) {
    const { validators, heads, views, sequencer } = rules;
    describe(`with ${validators} validators, logs ${heads.join(', ')}, ${views} recoveries and a sequencer that is ${sequencer}`, () => {
      const model = new LogModel(rules);
      const explored = explore(model);

      it('never certify two orders, and no honest validator votes twice', (t) => {
        t.diagnostic(`${explored.states.size} states`);
        assert.equal(
          first(explored, (state) => model.hasConflict(state)),
          undefined,
        );
        assert.equal(
          first(explored, (state) => model.hasDoubleVote(state)),
          undefined,
        );
      });

      it('certify the whole, whatever happened, once a quorum is honest and connected, after a recovery if a sequencer lied', () => {
        assert.equal(
          first(explored, (state) => !model.recovers(state)),
          undefined,
        );
        if (sequencer === 'orderly' && views === 0)
          assert.equal(
            first(explored, (state) => !model.goesOn(state)),
            undefined,
          );
      });
    });
  }

  const ONE = { ...FOUR, heads: allHeads(1), sequencer: 'lying' } as const;
  const TWO = { ...FOUR, heads: allHeads(2), sequencer: 'lying' } as const;
  const forks: Readonly<Partial<Record<LogMistake, LogRules>>> = {
    'a quorum of 2f': { ...ONE, views: 0 },
    'a prepare is stored after it was sent': { ...ONE, views: 0 },
    'prepares need not continue each other': { ...TWO, views: 0 },
    'one round of votes, without locks': { ...ONE, views: 1 },
    'a lock is stored after the commit was sent': { ...ONE, views: 1 },
    'an approval is stored after it was sent': { ...ONE, views: 1 },
    'prepares of older views count': { ...ONE, views: 1 },
    'commits go on after an approval': { ...ONE, views: 1 },
    'an approval does not follow the lock': { ...ONE, views: 1 },
    'a view opens with one approval less': { ...ONE, views: 1 },
    'a view need not continue what it was opened after': { ...ONE, views: 1 },
    'a lock is forgotten when a view opens': { ...ONE, views: 2 },
    'a certificate opens no view': { ...ONE, heads: FORK, views: 1, sequencer: 'orderly' },
    'an approval ends when what it follows is certified': { ...ONE, heads: FORK, views: 1, sequencer: 'orderly' },
  };
  for (const [mistake, rules] of Object.entries(forks) as [LogMistake, LogRules][]) {
    it(`would certify two orders if ${mistake}: the exploration finds how`, (t) => {
      const model = new LogModel({ ...rules, mistake });
      const how = firstOf(model, (state) => model.hasConflict(state));
      assert.ok(how);
      t.diagnostic(how);
    });
  }

  for (const mistake of ['one round of votes', 'prepares bind in every later view'] as const) {
    it(`would certify nothing any more if ${mistake}: the exploration finds how`, (t) => {
      const model = new LogModel({ ...ONE, views: 0, mistake });
      const how = firstOf(model, (state) => model.isStuck(state));
      assert.ok(how);
      t.diagnostic(how);
    });
  }

  it('would certify nothing any more if a lock is kept when a certificate opens a view: one way, which is too far to be found', () => {
    const steps = [
      ...['0 prepares XX in view 0', '1 prepares XX in view 0'],
      ...["0 approves view 1 after ''", "1 approves view 1 after ''"],
      ...["0 approves view 2 after 'XX'", "1 approves view 2 after 'XX'", "2 opens view 2 after 'XX'"],
      ...["0 opens view 1 after ''", "1 opens view 1 after ''"],
      ...[
        "0 approves view 3 after ''",
        "1 approves view 3 after ''",
        "0 opens view 3 after ''",
        "1 opens view 3 after ''",
      ],
      ...['0 prepares X in view 3', '1 prepares X in view 3', '0 commits X in view 3', '1 commits X in view 3'],
      ...['0', '1', '2'].map((each) => `${each} sees the certificate of X in view 3`),
      ...['0 prepares XX in view 3', '1 prepares XY in view 3'],
    ];
    const rules = { ...TWO, views: 3 };
    const mistake = 'a lock is kept when a certificate opens a view';
    const [model, worse] = [new LogModel(rules), new LogModel({ ...rules, mistake })];
    assert.equal(model.recovers(follow(model, steps)), true);
    assert.equal(worse.isStuck(follow(worse, steps)), true);
  });
});

/** Where a model is after these actions. */
function follow<S>(model: Model<S>, names: readonly string[]): S {
  return names.reduce((state, name) => {
    const action = [...model.actions(state)].find((each) => each.name === name);
    assert.ok(action, `${name}: this cannot happen there`);
    return action.to;
  }, model.initial);
}
