import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { canReach, explore, first, firstOf } from './explore.ts';
import { type LogMistake, LogModel, type LogRules, type LogState } from './log.ts';
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

const LOGS: readonly LogRules[] = [
  { ...FOUR, entries: 2, sequencer: 'orderly' },
  { ...FOUR, entries: 2, sequencer: 'lying' },
  { ...SEVEN, entries: 1, sequencer: 'lying' },
  ...(isLarge
    ? ([
        { ...FOUR, entries: 3, sequencer: 'orderly' },
        { ...SEVEN, entries: 2, sequencer: 'orderly' },
      ] as const)
    : []),
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
    const { validators, entries, sequencer } = rules;
    describe(`with ${validators} validators, ${entries} entries and a sequencer that is ${sequencer}`, () => {
      const model = new LogModel(rules);
      const explored = explore(model);

      it('never certify two orders', (t) => {
        t.diagnostic(`${explored.states.size} states`);
        assert.equal(
          first(explored, (state) => model.hasConflict(state)),
          undefined,
        );
      });

      it('certify the whole, whatever happened, once a quorum is honest and connected; only a sequencer that lied stops them', () => {
        const completes = canReach<LogState>(
          { key: (state) => model.key(state), actions: (state) => model.helpful(state) },
          (state) => model.isComplete(state),
        );
        assert.equal(
          first(explored, (state) => !completes(state) && !model.isSplit(state)),
          undefined,
        );
        if (sequencer === 'orderly')
          assert.equal(
            first(explored, (state) => model.isSplit(state)),
            undefined,
          );
      });
    });
  }

  const mistakes: Readonly<Record<LogMistake, number>> = {
    'a quorum of 2f': 1,
    'the vote is stored after it was sent': 1,
    'one head for each index and no more than that': 2,
  };
  for (const [mistake, entries] of Object.entries(mistakes) as [LogMistake, number][]) {
    it(`would not hold if the rule were ${mistake}: the exploration finds how`, (t) => {
      const model = new LogModel({ ...FOUR, entries, sequencer: 'lying', mistake });
      const how = firstOf(model, (state) => model.hasConflict(state));
      assert.ok(how);
      t.diagnostic(how);
    });
  }
});
