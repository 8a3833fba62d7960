import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type EpochMistake, EpochModel, type EpochRules, type EpochState } from './epochs.ts';
import { canReach, explore, first, firstOf } from './explore.ts';
import { type PartMistake, PartModel, type PartState } from './parts.ts';

/**
 * How one committee takes over from another, explored whole (docs/protocol/admission.md). `HYPERMESH_MODEL=large` takes the larger bounds: about three minutes and 3 GiB.
 */
const isLarge = process.env['HYPERMESH_MODEL'] === 'large';

/** Who of the honest validators sits, epoch by epoch. */
const SAME = [
  [0, 1, 2],
  [0, 1, 2],
];
const ONE_CHANGES = [
  [0, 1, 2],
  [1, 2, 3],
];
const TWO_CHANGE = [
  [0, 1, 2],
  [2, 3, 4],
];
const ALL_CHANGE = [
  [0, 1, 2],
  [3, 4, 5],
];
const THREE_EPOCHS = [...ONE_CHANGES, [1, 2, 3]];
const ONE_RETURNS = [...ONE_CHANGES, [2, 3, 0]];

type Run = Pick<EpochRules, 'seats' | 'lags'>;
const ALWAYS: readonly (Run & Partial<EpochRules>)[] = [
  { seats: SAME, lags: true },
  { seats: ONE_CHANGES, lags: true, clash: 'number' },
  { seats: THREE_EPOCHS, lags: false },
];
const LARGE: typeof ALWAYS = [
  { seats: ONE_CHANGES, lags: true, clash: 'version' },
  { seats: TWO_CHANGE, lags: true },
  { seats: ALL_CHANGE, lags: true },
  { seats: [...SAME, [0, 1, 2]], lags: true },
  { seats: ONE_RETURNS, lags: false },
];
const RULES: readonly EpochRules[] = (isLarge ? [...ALWAYS, ...LARGE] : ALWAYS).flatMap((run) => [
  // Of one operation the clash makes no difference.
  { ...run, clash: 'number', equivocates: false } as const,
  ...(['number', 'version'] as const)
    .filter((clash) => run.clash === undefined || run.clash === clash)
    .map((clash) => ({ ...run, clash, equivocates: true })),
]);

describe('the change of committees', () => {
  for (const rules of RULES) {
    const { seats, clash, equivocates, lags } = rules;
    const publisher = equivocates ? `a publisher who signed two operations for one ${clash}` : 'an honest publisher';
    const committees = seats.map((some) => `{${some}}`).join(' ');
    describe(`with the honest validators ${committees}${lags ? ', some of them behind' : ''}, for ${publisher}`, () => {
      const model = new EpochModel(rules);
      const explored = explore(model);

      it('never gives two certificates that conflict, also of two committees', (t) => {
        t.diagnostic(`${explored.states.size} states`);
        assert.equal(
          first(explored, (state) => model.hasConflict(state)),
          undefined,
        );
      });

      it('never ends with an epoch that does not open', () => {
        const opens = canReach<EpochState>(
          { key: (state) => model.key(state), actions: (state) => model.helpful(state, { endsEpochs: false }) },
          (state) => !state.known.order.isEnding,
        );
        assert.equal(
          first(explored, (state) => state.known.order.isEnding && !opens(state)),
          undefined,
        );
      });

      it('admits what is asked for, whatever happened; only who signed two operations stands in its own way', () => {
        const admits = canReach<EpochState>(
          { key: (state) => model.key(state), actions: (state) => model.helpful(state, { endsEpochs: false }) },
          (state) => model.isAdmitted(state),
        );
        // With more than two epochs a number that was given up is closed: the publisher takes the next one.
        const isOver = (state: EpochState) => seats.length > 2 && model.isBarred(state);
        assert.equal(
          first(explored, (state) => !admits(state) && !model.isContested(state) && !isOver(state)),
          undefined,
        );
        if (equivocates) return;
        assert.equal(
          first(explored, (state) => model.isContested(state)),
          undefined,
        );
      });
    });
  }

  const mistakes: Readonly<Record<EpochMistake, true>> = {
    'it votes before its order opened the epoch': true,
    'it votes on after its handover': true,
    'its handover leaves out what it voted for': true,
    'its handover leaves out what it knows to be certified': true,
    'an epoch opens with fewer than a quorum of handovers': true,
    'who has no seat hands over': true,
    'of two operations the first one counts': true,
    'what a certificate settled is named again': true,
    'what is closed is named again': true,
    'a certificate in the order closes nothing': true,
    'what was handed over binds one epoch only': true,
  };
  for (const mistake of Object.keys(mistakes) as EpochMistake[]) {
    it(`would not hold if ${mistake}: the exploration finds how`, (t) => {
      const model = new EpochModel({ seats: THREE_EPOCHS, lags: false, clash: 'number', equivocates: true, mistake });
      const how = firstOf(model, (state) => model.hasConflict(state));
      assert.ok(how);
      t.diagnostic(how);
    });
  }
});

describe('a handover in several parts', () => {
  it('leaves nothing out, whatever is certified, lost and late meanwhile, and comes to its end', (t) => {
    const model = new PartModel({ attempts: 3 });
    const explored = explore(model);
    t.diagnostic(`${explored.states.size} states`);
    assert.equal(
      first(explored, (state) => model.isLacking(state)),
      undefined,
    );
    const ends = canReach<PartState>(
      { key: (state) => model.key(state), actions: (state) => model.helpful(state) },
      (state) => model.isWhole(state),
    );
    assert.equal(
      first(explored, (state) => model.hasAttempts(state) && !ends(state)),
      undefined,
    );
  });

  const mistakes: Readonly<Record<PartMistake, true>> = {
    'it goes on where the order is, in a list made anew': true,
    'it goes on after a part that is refused': true,
  };
  for (const mistake of Object.keys(mistakes) as PartMistake[]) {
    it(`would leave something out if ${mistake}: the exploration finds how`, (t) => {
      const model = new PartModel({ attempts: 3, mistake });
      const how = firstOf(model, (state) => model.isLacking(state));
      assert.ok(how);
      t.diagnostic(how);
    });
  }
});
