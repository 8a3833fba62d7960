import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isCoded } from '../base/errors.ts';
import type { CapabilityName, HyperMeshExtension } from '../capabilities/extension.ts';
import type { Extensions } from '../host/extensions.ts';

/** One node with room for the extension under test. */
export interface ExtensionSubject extends AsyncDisposable {
  readonly extensions: Extensions;
  readonly id: string;
  readonly needs: readonly CapabilityName[];
  /** Loads it with these grants. */
  load(grants: readonly CapabilityName[]): Promise<HyperMeshExtension>;
}

/** What every extension promises to its host, in whatever way it runs. */
export function testExtension(name: string, make: () => Promise<ExtensionSubject>): void {
  describe(`extension ${name}`, () => {
    it('runs after load() and tells about itself', async () => {
      await using subject = await make();
      const { extensions, id, needs } = subject;
      const extension = await subject.load(needs);
      const [listed] = extensions.list();
      assert.equal(listed!.id, id);
      assert.equal(listed!.state, 'running');
      const metadata = extension.metadata();
      assert.deepEqual(metadata.needs, needs);
      assert.deepEqual(metadata.provides, listed!.provides);
      for (const type of metadata.provides) assert.equal(extensions.handlerFor(type)!.assetType(), type);
      assert.equal((await extensions.status(id)).state, 'running');
      assert.equal((await extensions.status(id)).health.kind, 'healthy');
      assert.equal((await extension.validate()).valid, true);
    });

    it('is refused at load when one of its needs is not granted', async () => {
      await using subject = await make();
      for (const missing of subject.needs) {
        const grants = subject.needs.filter((need) => need !== missing);
        await assert.rejects(subject.load(grants), (error) => isCoded(error, 'capability-not-granted'));
        assert.deepEqual(subject.extensions.list(), []);
      }
    });

    it('answers a request that it does not know with a refusal', async () => {
      await using subject = await make();
      await subject.load(subject.needs);
      const request = { id: 'request-1', method: 'no-such-method', params: {} };
      const response = await subject.extensions.route(subject.id, request);
      assert.equal(response.requestId, 'request-1');
      assert.equal(response.ok, false);
    });

    it('takes back its own snapshot and refuses an altered or a newer one', async () => {
      await using subject = await make();
      const extension = await subject.load(subject.needs);
      const snapshot = await extension.exportState();
      assert.equal(snapshot.extension, subject.id);
      await extension.importState(snapshot);
      const { exportedAtMs: _before, ...content } = snapshot;
      const { exportedAtMs: _after, ...again } = await extension.exportState();
      assert.deepEqual(again, content);
      const checksum = [...snapshot.checksum].reverse().join('');
      await assert.rejects(extension.importState({ ...snapshot, checksum }), (error) =>
        isCoded(error, 'state-invalid'),
      );
      const version = snapshot.version + 1;
      await assert.rejects(extension.importState({ ...snapshot, version }), (error) => isCoded(error, 'state-too-new'));
    });

    it('refuses while paused and answers when resumed', async () => {
      await using subject = await make();
      const { extensions, id } = subject;
      const extension = await subject.load(subject.needs);
      const request = { id: 'request-1', method: 'no-such-method', params: {} };
      await extensions.pause(id);
      await assert.rejects(extensions.route(id, request), (error) => isCoded(error, 'extension-state'));
      await assert.rejects(extension.handleRequest(request), (error) => isCoded(error, 'extension-state'));
      await assert.rejects(extensions.pause(id), (error) => isCoded(error, 'extension-state'));
      await extensions.resume(id);
      assert.equal((await extensions.route(id, request)).ok, false);
    });

    it('leaves nothing that answers after unload(), and can be loaded again', async () => {
      await using subject = await make();
      const { extensions, id } = subject;
      const extension = await subject.load(subject.needs);
      const { provides } = extension.metadata();
      const handlers = provides.map((type) => extensions.handlerFor(type)!);
      await extensions.unload(id);
      assert.deepEqual(extensions.list(), []);
      const request = { id: 'request-1', method: 'any', params: {} };
      await assert.rejects(extensions.route(id, request), (error) => isCoded(error, 'extension-not-found'));
      await assert.rejects(extension.handleRequest(request), (error) => isCoded(error, 'extension-state'));
      await assert.rejects(extension.exportState(), (error) => isCoded(error, 'extension-state'));
      assert.throws(
        () => extension.metadata(),
        (error) => isCoded(error, 'extension-state'),
      );
      for (const type of provides) assert.equal(extensions.handlerFor(type), null);
      for (const handler of handlers) {
        await assert.rejects(handler.queryAssets({}), (error) => isCoded(error, 'extension-state'));
      }
      await subject.load(subject.needs);
      assert.equal(extensions.list()[0]!.state, 'running');
    });
  });
}
