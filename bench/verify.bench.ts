import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { HyperMesh, offlineJudges, verifyBundleOffline } from '../src/index.ts';
import { createFalcon } from '../src/subsystems/trustchain/falcon.ts';
import { writePackage } from '../test/system/support.ts';
import { type Bench, inTurn, timed } from './harness.ts';
import { DEFAULT_PROOFS } from './networks.ts';

export const bench: Bench = {
  name: 'verify',
  about: 'full offline verification of a bundle of the default proofs, against one bare FALCON-1024 verification',
  async run() {
    const folder = await mkdtemp(join(tmpdir(), 'hypermesh-bench-'));
    try {
      await using hypermesh = await HyperMesh.create({ home: join(folder, 'home'), network: DEFAULT_PROOFS });
      const catalog = await hypermesh.loadExtension('catalog');
      const source = await writePackage(join(folder, 'source'), {
        name: 'bench/verify',
        version: '1.0.0',
        type: 'library',
      });
      await catalog.publishPackage(await catalog.signPackage(await hypermesh.stageFolder(source)));
      const bundle = await catalog.bundle('bench/verify');

      const falcon = createFalcon();
      const keys = falcon.generate();
      const message = new Uint8Array(64);
      const signature = falcon.sign(message, keys.secretKey);
      const bare = () => timed(() => falcon.verify(signature, message, keys.publicKey));

      const kept = offlineJudges();
      const cold = await inTurn(30, () => timed(() => verifyBundleOffline(bundle)), bare);
      const cached = await inTurn(30, () => timed(() => verifyBundleOffline(bundle, { judges: kept })), bare);
      const reference = 'one FALCON-1024 verify';
      return [
        { name: 'bundle, cold chain', unit: 'ms', reference, oursMax: 12, ours: cold.ours, theirs: cold.theirs },
        { name: 'bundle, cached chain', unit: 'ms', reference, oursMax: 6, ours: cached.ours, theirs: cached.theirs },
      ];
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  },
};
