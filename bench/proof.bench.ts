import { constants, hash, publicEncrypt } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { HyperMesh, offlineJudges } from '../src/index.ts';
import { N, toBytes } from '../src/subsystems/nkrypt/rsa-group.ts';
import { generateEd25519, signEd25519, verifyEd25519 } from '../src/subsystems/trustchain/ed25519.ts';
import { createFalcon } from '../src/subsystems/trustchain/falcon.ts';
import type { OperationKind, ProofSet } from '../src/wire/proof.ts';
import { type Bench, type Comparison, timed, type WorstTurn, worstIdleTurn, worstTurn, worstTurns } from './harness.ts';
import { DEFAULT_PROOFS } from './networks.ts';
import { rsaKey, squarer } from './squarings.ts';

const VERIFY_ROUNDS = 30;
const PROVE_ROUNDS = 5;
const IDLE_MS = 1_000;
/** What making the proofs may take of the window in which they must arrive. */
const MARGIN = 5;

export const bench: Bench = {
  name: 'proof',
  about: 'making and checking the proofs of the default table, each against the bare primitive it rests on',
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
    try {
      await using hypermesh = await HyperMesh.create({ home: join(folder, 'home'), network: DEFAULT_PROOFS });
      const { consensus } = hypermesh.node;
      const { document: genesis } = await consensus.genesis();
      const prove = async (kind: OperationKind): Promise<ProofSet> =>
        consensus.prove(await consensus.challenge(kind, `sha256:${'ab'.repeat(32)}`, 'bench/proof@1.0.0'));
      const set = await prove('publish');

      const rows: Comparison[] = [];
      const judges = offlineJudges();
      const verify = () => judges.consensus.verify(set, { genesis, atMs: set.challenge.anchor.issuedAtMs });
      const bare = bareChecks(set);
      const parts = { space: lists(), stake: lists(), work: lists(), time: lists() };
      const total = lists();
      for (let round = 0; round <= VERIFY_ROUNDS; round++) {
        const tookMs = await timed(async () => {
          const verdicts = await verify();
          // The first round validates the chains and compiles the code.
          if (round > 0) for (const { kind, verifyMs } of verdicts) parts[kind].ours.push(verifyMs);
        });
        if (round === 0) continue;
        let sumMs = 0;
        for (const kind of ['space', 'stake', 'work', 'time'] as const) {
          const bareMs = await timed(bare[kind].work);
          parts[kind].theirs.push(bareMs);
          sumMs += bareMs;
        }
        total.ours.push(tookMs);
        total.theirs.push(sumMs);
      }
      rows.push({ name: 'check all four', unit: 'ms', reference: 'the four below', oursMax: 6, ...total });
      for (const kind of ['space', 'stake', 'work', 'time'] as const) {
        rows.push({ name: `check ${kind}`, unit: 'ms', reference: bare[kind].reference, ...parts[kind] });
      }

      const square = squarer();
      for (const kind of ['publish', 'install'] as const) {
        const { squarings, windowMs } = DEFAULT_PROOFS.requirements[kind].time;
        const made = lists();
        const turns = { ours: [] as WorstTurn[], idle: [] as WorstTurn[] };
        for (let round = 0; round < PROVE_ROUNDS; round++) {
          turns.ours.push(await worstTurn(async () => made.ours.push(await timed(() => prove(kind)))));
          made.theirs.push(await timed(() => square(squarings)));
          turns.idle.push(await worstIdleTurn(IDLE_MS));
        }
        const reference = `${squarings} bare squarings by OpenSSL`;
        rows.push({ name: `make for ${kind}`, unit: 'ms', reference, oursMax: windowMs / MARGIN, ...made });
        rows.push(...worstTurns(`while making for ${kind}`, turns.ours, turns.idle));
      }
      return rows;
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};

function lists(): { readonly ours: number[]; readonly theirs: number[] } {
  return { ours: [], theirs: [] };
}

interface Bare {
  readonly reference: string;
  readonly work: () => void;
}

/** What is left of each check when there is nothing around the primitive. */
function bareChecks({ space }: ProofSet): Record<'space' | 'stake' | 'work' | 'time', Bare> {
  const falcon = createFalcon();
  const keys = falcon.generate();
  const ed25519 = generateEd25519();
  const message = new Uint8Array(512);
  const signature = falcon.sign(message, keys.secretKey);
  const second = signEd25519(message, ed25519.seed);
  const signatures = () => {
    falcon.verify(signature, message, keys.publicKey);
    verifyEd25519(second, message, ed25519.publicKey);
  };
  const pair = new Uint8Array(64);
  // Each node of the path is hashed with one that is known, and each two known ones with each other.
  const hashes = (space!.labels.length + space!.path.length) / 43;
  const values = [toBytes(N / 3n), toBytes(N / 5n)];
  const key = rsaKey((1n << 263n) + 12_345n);
  return {
    space: {
      reference: `one double signature and ${Math.round(hashes)} SHA-256 of 64 bytes`,
      work() {
        signatures();
        for (let i = 0; i < hashes; i++) hash('sha256', pair, 'buffer');
      },
    },
    stake: { reference: 'one double signature', work: signatures },
    work: { reference: 'one SHA-256 of 72 bytes', work: () => void hash('sha256', new Uint8Array(72), 'buffer') },
    time: {
      reference: 'two exponentiations of 264 bits by OpenSSL',
      work() {
        for (const value of values) publicEncrypt({ key, padding: constants.RSA_NO_PADDING }, value);
      },
    },
  };
}
