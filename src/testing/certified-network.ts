import { base64 } from '../base/bytes.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import type { CertificateInfo, Trust } from '../capabilities/trust.ts';
import { generateEd25519, signEd25519 } from '../subsystems/trustchain/ed25519.ts';
import { createFalcon } from '../subsystems/trustchain/falcon.ts';
import { verifyEnvelope } from '../subsystems/trustchain/index.ts';
import { issue, issueList } from '../subsystems/trustchain/issue.ts';
import type { CertificateRow } from '../subsystems/trustchain/tables.ts';
import type { CertificateRole, CertificateSigner, LeafRole, PublicKeys } from '../wire/certificate.ts';
import { pae, sealEnvelope, type TrustAnchor } from '../wire/signature.ts';

/** What a node of a {@link CertifiedNetwork} signs and verifies with: true keys, kept in memory. */
export interface CertifiedNode {
  readonly trust: Pick<Trust, 'identity' | 'sign' | 'verify' | 'anchor'>;
  /** Key ids. */
  readonly node: string;
  readonly publisher: string;
}

interface Holder {
  readonly keys: PublicKeys;
  readonly falconSecret: Uint8Array;
  readonly ed25519Seed: Uint8Array;
  readonly row: CertificateRow;
}

const falcon = createFalcon();

/** A root and as many certified nodes as a test wants, without homes on disk. Their keys are fresh and their signatures real. */
export class CertifiedNetwork {
  readonly networkId: Digest;
  readonly clock: Clock;
  readonly #root: Holder;
  readonly #intermediate: Holder;
  #anchor: TrustAnchor;
  #lists = 1;
  readonly #revoked: { readonly serial: string; readonly atMs: number; readonly reason: 'key-compromise' }[] = [];

  static async found(clock: Clock = systemClock): Promise<CertifiedNetwork> {
    const root = await holder('root', clock);
    const intermediate = await holder('intermediate', clock, root);
    const network = new CertifiedNetwork(clock, root, intermediate);
    await network.#list();
    return network;
  }

  private constructor(clock: Clock, root: Holder, intermediate: Holder) {
    this.clock = clock;
    this.#root = root;
    this.#intermediate = intermediate;
    this.#anchor = { root: base64(root.row.der), revocations: [] };
    this.networkId = digestOf(root.row.der);
  }

  async node(clock: Clock = this.clock): Promise<CertifiedNode> {
    const holders = {
      node: await holder('node', clock, this.#intermediate),
      publisher: await holder('publisher', clock, this.#intermediate),
    };
    const of = (role: LeafRole): Holder => {
      if (role === 'validator') throw new TypeError('nodes of a test network do not vote');
      return holders[role];
    };
    const chain = (role: LeafRole) => [of(role), this.#intermediate, this.#root].map(({ row }) => base64(row.der));
    const trust: CertifiedNode['trust'] = {
      identity: async (role) => ({ ...infoOf(of(role).row), chain: chain(role) }),
      async sign(role, payloadType, payload) {
        const { row, ...keys } = of(role);
        const signer = signerOf(keys);
        const bytes = pae(payloadType, payload);
        const signatures = { falcon: await signer.falcon(bytes), ed25519: await signer.ed25519(bytes) };
        return sealEnvelope(payloadType, payload, row.key_id, signatures);
      },
      verify: (envelope, certificates, { role, atMs = clock.nowMs(), anchor = this.#anchor }) =>
        verifyEnvelope(envelope, certificates, anchor, { role, atMs }),
      anchor: async () => this.#anchor,
    };
    return { trust, node: holders.node.row.key_id, publisher: holders.publisher.row.key_id };
  }

  /** From now on every node of the network refuses what that one signs as a node. */
  async revoke(node: CertifiedNode): Promise<void> {
    const { serial } = await node.trust.identity('node');
    this.#revoked.push({ serial, atMs: this.clock.nowMs(), reason: 'key-compromise' });
    await this.#list();
  }

  async #list(): Promise<void> {
    const about = { number: this.#lists++, nowMs: this.clock.nowMs() };
    const lists = await Promise.all([
      issueList(this.#root.row, { ...about, revoked: [] }, signerOf(this.#root)),
      issueList(this.#intermediate.row, { ...about, revoked: this.#revoked }, signerOf(this.#intermediate)),
    ]);
    this.#anchor = { ...this.#anchor, revocations: lists.map(({ der }) => base64(der)) };
  }
}

async function holder(role: CertificateRole, clock: Clock, issuer?: Holder): Promise<Holder> {
  const pair = falcon.generate();
  const { publicKey, seed } = generateEd25519();
  const secrets = { falconSecret: pair.secretKey, ed25519Seed: seed };
  const keys = { falcon: pair.publicKey, ed25519: publicKey };
  const row = await issue(
    {
      ...{ role, network: 'test', subject: 'test', keys, nowMs: clock.nowMs() },
      ...(issuer === undefined ? {} : { issuer: issuer.row }),
    },
    signerOf(issuer ?? secrets),
  );
  return { keys, ...secrets, row };
}

function signerOf({ falconSecret, ed25519Seed }: Pick<Holder, 'falconSecret' | 'ed25519Seed'>): CertificateSigner {
  return {
    falcon: async (bytes) => falcon.sign(bytes, falconSecret),
    ed25519: async (bytes) => signEd25519(bytes, ed25519Seed),
  };
}

function infoOf(row: CertificateRow): CertificateInfo {
  const { fingerprint, serial, subject, issuer, role, key_id, not_before_ms, not_after_ms } = row;
  return {
    ...{ fingerprint, serial, subject, issuer, role },
    ...{ keyId: key_id, notBeforeMs: not_before_ms, notAfterMs: not_after_ms, status: 'valid' },
  };
}
