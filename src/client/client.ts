import type { CallOptions, Progress } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import type {
  AssetPage,
  AssetRecord,
  Assets,
  BlobInfo,
  CollectReport,
  InstalledPackage,
} from '../capabilities/assets.ts';
import type { ProofVerdict, SpaceStatus, StakeAccount } from '../capabilities/consensus.ts';
import type {
  CommitteeInfo,
  LeftPlace,
  NetworkMember,
  NetworkPlace,
  NewInvite,
  ProposalInfo,
  SequencerInfo,
} from '../capabilities/membership.ts';
import type { Event, MetricSample } from '../capabilities/monitoring.ts';
import type { Ban, Code, Distribution, PeerInfo, SyncSummary } from '../capabilities/transport.ts';
import type { CertificateInfo } from '../capabilities/trust.ts';
import type { RuntimeStatus } from '../capabilities/vm.ts';
import type { Catalog, CatalogRun, InstallResult, PublishResult, VerifyResult } from '../catalog/api.ts';
import type { Bundle } from '../wire/bundle.ts';
import type { Grant } from '../wire/grants.ts';
import {
  type BanWithEvidence,
  type ChangeValidatorsRequest,
  type CreateNetworkRequest,
  type ForgiveRequest,
  type GrantRequest,
  type InstallRequest,
  type InviteRequest,
  type JoinRequest,
  type LeaveRequest,
  type MoveSequencerRequest,
  NDJSON,
  type NodeStatus,
  type ProofRequest,
  type RemoveMemberRequest,
  type RunRequest,
  type RuntimeRequest,
  type SearchRequest,
  STATE_EXPORT,
  type StakeRequest,
  TREE,
  type VerifyRequest,
} from '../wire/http.ts';
import { parseRef } from '../wire/names.ts';
import type { ProofSet, Requirements } from '../wire/proof.ts';
import type { CertificateChain, SignedTreeHead, TrustAnchor } from '../wire/signature.ts';
import { readEvents, readLines, readProblem } from './answer.ts';

interface ClientOptions {
  /** Base URL of the node, for example `http://127.0.0.1:40123`. */
  readonly http: string;
  /** Without it only reads are allowed. */
  readonly token?: string;
}

type Identity = CertificateInfo & { readonly chain: CertificateChain };

interface NetworkInfo {
  readonly networkId: Digest;
  readonly document: Json;
  readonly anchor: TrustAnchor;
  /** Null while the committee cannot be reached. */
  readonly log: SignedTreeHead | null;
  readonly requirements: readonly Requirements[];
}

/** The HTTP API, typed. Every method fails with the `HyperMeshError` that the node reported, or `node-not-running` when none answers. */
export class Client {
  readonly #http: string;
  readonly #token: string | undefined;

  constructor(options: ClientOptions) {
    this.#http = options.http.replace(/\/$/, '');
    this.#token = options.token;
  }

  health(options?: CallOptions): Promise<{ readonly ok: true; readonly pid: number }> {
    return this.#get('/v1/health', {}, options);
  }

  status(options?: CallOptions): Promise<NodeStatus> {
    return this.#get('/v1/status', {}, options);
  }

  runtimes(options?: CallOptions): Promise<readonly RuntimeStatus[]> {
    return this.#get('/v1/runtimes', {}, options);
  }

  grants(options?: CallOptions): Promise<readonly Grant[]> {
    return this.#get('/v1/grants', {}, options);
  }

  grant(given: GrantRequest, options?: CallOptions): Promise<Grant> {
    return this.#json('POST', '/v1/grants', given, options);
  }

  /** `what`: one place or folder; everything when absent. */
  revokeGrant(subject: Digest, what?: string, options?: CallOptions): Promise<{ readonly revoked: boolean }> {
    return this.#json('DELETE', withQuery(`/v1/grants/${subject}`, { what }), undefined, options);
  }

  /** `from`: a package of the catalog by reference, or a layer that was sent. */
  addRuntime(kind: string, from: RuntimeRequest = {}, options?: CallOptions): Promise<RuntimeStatus> {
    return this.#long(`/v1/runtimes/${encodeURIComponent(kind)}`, from, options);
  }

  /** A language that was added, as the tree of a package. */
  async *exportRuntime(kind: string, options?: CallOptions): AsyncIterable<Uint8Array> {
    const response = await this.#fetch('GET', withQuery('/v1/runtimes/image', { kind }), {}, undefined, options);
    if (response.body !== null) yield* response.body;
  }

  removeRuntime(kind: string, options?: CallOptions): Promise<{ readonly removed: boolean }> {
    return this.#json('DELETE', `/v1/runtimes/${encodeURIComponent(kind)}`, undefined, options);
  }

  /** Progress step: `upload`. `total`: bytes, when known. */
  async stageLayer(
    tree: AsyncIterable<Uint8Array>,
    { total, ...options }: CallOptions & { readonly total?: number } = {},
  ): Promise<BlobInfo> {
    return this.#upload('POST', '/v1/layers', TREE, reportBytes(tree, 'upload', total, options), options);
  }

  publish(manifestYaml: string, layer: Digest, options?: CallOptions): Promise<PublishResult> {
    return this.#long('/v1/packages', { manifestYaml, layer }, options);
  }

  search(request: SearchRequest, options?: CallOptions): Promise<AssetPage> {
    return this.#get('/v1/packages', request, options);
  }

  info(ref: string, options?: CallOptions): ReturnType<Catalog['info']> {
    const { path, range } = packagePath(ref);
    return this.#get(path, { range }, options);
  }

  bundle(ref: string, options?: CallOptions): Promise<Bundle> {
    const { path, range } = packagePath(ref);
    return this.#get(`${path}/bundle`, { range }, options);
  }

  setState(
    ref: string,
    state: AssetRecord['state'],
    reason: string | null,
    options?: CallOptions,
  ): Promise<AssetRecord> {
    const { path, range } = packagePath(ref);
    return this.#json('PUT', `${path}/state`, { range, state, reason }, options);
  }

  delete(ref: string, options?: CallOptions): Promise<AssetRecord> {
    const { path, range } = packagePath(ref);
    return this.#json('DELETE', withQuery(path, { range }), undefined, options);
  }

  installed(root?: string, options?: CallOptions): Promise<readonly InstalledPackage[]> {
    return this.#get('/v1/installations', { root }, options);
  }

  install(request: InstallRequest, options?: CallOptions): Promise<InstallResult> {
    return this.#long('/v1/installations', request, options);
  }

  uninstall(names: readonly string[], root?: string, options?: CallOptions): Promise<InstallResult> {
    return this.#long('/v1/installations/uninstall', { names, root }, options);
  }

  update(names: readonly string[], root?: string, options?: CallOptions): Promise<InstallResult> {
    return this.#long('/v1/installations/update', { names, root }, options);
  }

  rollback(root?: string, options?: CallOptions): Promise<InstallResult> {
    return this.#long('/v1/installations/rollback', { root }, options);
  }

  run(request: RunRequest, options?: CallOptions): Promise<CatalogRun> {
    return this.#long('/v1/runs', request, options);
  }

  verify(request: VerifyRequest, options?: CallOptions): Promise<VerifyResult> {
    return this.#long('/v1/verify', request, options);
  }

  keys(
    options?: CallOptions,
  ): Promise<{ readonly publisher: Identity; readonly validator: Identity; readonly node: Identity }> {
    return this.#get('/v1/keys', {}, options);
  }

  certificates(options?: CallOptions): Promise<readonly CertificateInfo[]> {
    return this.#get('/v1/certificates', {}, options);
  }

  renewCertificate(role: 'publisher' | 'validator' | 'node', options?: CallOptions): Promise<CertificateInfo> {
    return this.#json('POST', '/v1/certificates/renew', { role }, options);
  }

  revokeCertificate(
    fingerprint: string,
    reason: string,
    options?: CallOptions,
  ): Promise<{ readonly revoked: string; readonly reason: string }> {
    return this.#json('POST', '/v1/certificates/revoke', { fingerprint, reason }, options);
  }

  network(options?: CallOptions): Promise<NetworkInfo> {
    return this.#get('/v1/network', {}, options);
  }

  networkPlace(options?: CallOptions): Promise<NetworkPlace> {
    return this.#get('/v1/network/place', {}, options);
  }

  createNetwork(request: CreateNetworkRequest, options?: CallOptions): Promise<NetworkPlace> {
    return this.#json('POST', '/v1/network/create', request, options);
  }

  closeNetwork(options?: CallOptions): Promise<NetworkPlace> {
    return this.#json('POST', '/v1/network/close', {}, options);
  }

  invite(request: InviteRequest, options?: CallOptions): Promise<NewInvite> {
    return this.#json('POST', '/v1/network/invites', request, options);
  }

  /** Progress step: `join`. */
  joinNetwork(request: JoinRequest, options?: CallOptions): Promise<NetworkPlace> {
    return this.#long('/v1/network/join', request, options);
  }

  networkMembers(options?: CallOptions): Promise<readonly NetworkMember[]> {
    return this.#get('/v1/network/members', {}, options);
  }

  networkValidators(options?: CallOptions): Promise<CommitteeInfo> {
    return this.#get('/v1/network/validators', {}, options);
  }

  networkProposals(options?: CallOptions): Promise<readonly ProposalInfo[]> {
    return this.#get('/v1/network/proposals', {}, options);
  }

  changeValidators(request: ChangeValidatorsRequest, options?: CallOptions): Promise<ProposalInfo> {
    return this.#long('/v1/network/validators', request, options);
  }

  networkSequencer(options?: CallOptions): Promise<SequencerInfo> {
    return this.#get('/v1/network/sequencer', {}, options);
  }

  moveSequencer(request: MoveSequencerRequest, options?: CallOptions): Promise<SequencerInfo> {
    return this.#long('/v1/network/sequencer', request, options);
  }

  leaveNetwork(request: LeaveRequest, options?: CallOptions): Promise<LeftPlace> {
    return this.#long('/v1/network/leave', request, options);
  }

  removeMember(request: RemoveMemberRequest, options?: CallOptions): Promise<NetworkMember> {
    return this.#json('POST', '/v1/network/remove', request, options);
  }

  peers(options?: CallOptions): Promise<readonly PeerInfo[]> {
    return this.#get('/v1/peers', {}, options);
  }

  discoverPeers(options?: CallOptions): Promise<readonly PeerInfo[]> {
    return this.#long('/v1/peers/discover', {}, options);
  }

  bans(options?: CallOptions): Promise<readonly Ban[]> {
    return this.#get('/v1/peers/bans', {}, options);
  }

  ban(node: string, options?: CallOptions): Promise<BanWithEvidence> {
    return this.#get(`/v1/peers/bans/${node}`, {}, options);
  }

  forgive(request: ForgiveRequest, options?: CallOptions): Promise<{ readonly node: string }> {
    return this.#json('POST', '/v1/peers/forgive', request, options);
  }

  /** Progress step: `sync`. */
  sync(options?: CallOptions): Promise<SyncSummary> {
    return this.#long('/v1/sync', {}, options);
  }

  /** Progress steps: `distribute`, with `code` first `encode`. */
  distribute(ref: string, { code, ...options }: CallOptions & { readonly code?: Code } = {}): Promise<Distribution> {
    const { name, range } = parseRef(ref);
    return this.#long(`/v1/packages/${name}/distribute`, { range, code }, options);
  }

  makeProofs(request: ProofRequest, options?: CallOptions): Promise<ProofSet> {
    return this.#long('/v1/proofs', request, options);
  }

  /** `atMs`: when the proofs arrived, for what was admitted before; now when absent. */
  verifyProofs(proofs: Json, atMs?: number, options?: CallOptions): Promise<readonly ProofVerdict[]> {
    return this.#json('POST', '/v1/proofs/verify', { proofs, ...(atMs === undefined ? {} : { atMs }) }, options);
  }

  stake(options?: CallOptions): Promise<StakeAccount> {
    return this.#get('/v1/stake', {}, options);
  }

  changeStake(request: StakeRequest, options?: CallOptions): Promise<StakeAccount> {
    return this.#json('POST', '/v1/stake', request, options);
  }

  space(options?: CallOptions): Promise<SpaceStatus> {
    return this.#get('/v1/space', {}, options);
  }

  /** Progress step: `space`. */
  commitSpace(options?: CallOptions): Promise<SpaceStatus> {
    return this.#long('/v1/space', {}, options);
  }

  metrics(pattern: string, options?: CallOptions): Promise<readonly MetricSample[]> {
    return this.#get('/v1/metrics', { pattern }, options);
  }

  /** Prometheus text. */
  async scrape(options?: CallOptions): Promise<string> {
    return (await this.#fetch('GET', '/metrics', {}, undefined, options)).text();
  }

  /** With `follow`, goes on until the signal ends or the node stops. */
  async *events(
    request: { readonly after?: number; readonly pattern?: string; readonly follow?: boolean },
    options?: CallOptions,
  ): AsyncIterable<Event> {
    const path = withQuery('/v1/events', { follow: false, ...request });
    yield* readEvents(await this.#fetch('GET', path, { accept: 'text/event-stream' }, undefined, options));
  }

  collect(
    scrub: boolean,
    options?: CallOptions,
  ): Promise<CollectReport & { readonly scrub?: Awaited<ReturnType<Assets['scrub']>> }> {
    return this.#long('/v1/gc', { scrub }, options);
  }

  async *exportState(options?: CallOptions): AsyncIterable<Uint8Array> {
    const response = await this.#fetch('GET', '/v1/state', {}, undefined, options);
    if (response.body !== null) yield* response.body;
  }

  importState(stream: AsyncIterable<Uint8Array>, options: CallOptions = {}): Promise<{ readonly imported: true }> {
    return this.#upload('PUT', '/v1/state', STATE_EXPORT, reportBytes(stream, 'upload', undefined, options), options);
  }

  /** The node answers, then stops. */
  shutdown(options?: CallOptions): Promise<{ readonly stopping: true; readonly pid: number }> {
    return this.#json('POST', '/v1/shutdown', {}, options);
  }

  async #get<T>(path: string, query: Query, options?: CallOptions): Promise<T> {
    const response = await this.#fetch('GET', withQuery(path, query), {}, undefined, options);
    return (await response.json()) as T;
  }

  async #json<T>(method: string, path: string, body: unknown, options?: CallOptions): Promise<T> {
    const response = await this.#fetch(method, path, ...jsonBody(body), options);
    return (await response.json()) as T;
  }

  async #long<T>(path: string, body: unknown, options: CallOptions = {}): Promise<T> {
    const [headers, text] = jsonBody(body);
    const response = await this.#fetch('POST', path, { ...headers, accept: NDJSON }, text, options);
    return (await readLines(response, options.onProgress)) as T;
  }

  async #upload<T>(
    method: string,
    path: string,
    type: string,
    content: AsyncIterable<Uint8Array>,
    options: CallOptions,
  ): Promise<T> {
    // An error of the source is the reason of the failed request: it must win over the error of the request.
    let broken: { readonly error: unknown } | undefined;
    async function* watched() {
      try {
        yield* content;
      } catch (error) {
        broken = { error };
        throw error;
      }
    }
    try {
      const response = await this.#fetch(
        method,
        path,
        { 'content-type': type },
        ReadableStream.from(watched()),
        options,
      );
      return (await response.json()) as T;
    } catch (error) {
      throw broken === undefined ? error : broken.error;
    }
  }

  async #fetch(
    method: string,
    path: string,
    headers: Readonly<Record<string, string>>,
    body: string | ReadableStream | undefined,
    options: CallOptions = {},
  ): Promise<Response> {
    let response: Response;
    try {
      response = await fetch(this.#http + path, {
        method,
        headers: { ...headers, ...(this.#token === undefined ? {} : { authorization: `Bearer ${this.#token}` }) },
        redirect: 'error',
        ...(body === undefined ? {} : { body }),
        ...(body instanceof ReadableStream ? { duplex: 'half' as const } : {}),
        ...(options.signal === undefined ? {} : { signal: options.signal }),
      });
    } catch (error) {
      throw connectionError(error, this.#http, options.signal);
    }
    if (!response.ok) throw await readProblem(response);
    return response;
  }
}

type Query = Readonly<Record<string, string | number | boolean | undefined>>;

function withQuery(path: string, query: Query): string {
  const given = Object.entries(query).flatMap(([key, value]) => (value === undefined ? [] : [[key, String(value)]]));
  return given.length === 0 ? path : `${path}?${new URLSearchParams(given)}`;
}

function packagePath(ref: string): { readonly path: string; readonly range: string | undefined } {
  const { name, range } = parseRef(ref);
  return { path: `/v1/packages/${name}`, range: range === '*' ? undefined : range };
}

function jsonBody(body: unknown): [Readonly<Record<string, string>>, string | undefined] {
  return body === undefined ? [{}, undefined] : [{ 'content-type': 'application/json' }, JSON.stringify(body)];
}

async function* reportBytes(
  content: AsyncIterable<Uint8Array>,
  step: string,
  total: number | undefined,
  { onProgress }: CallOptions,
): AsyncIterable<Uint8Array> {
  let done = 0;
  for await (const piece of content) {
    yield piece;
    done += piece.length;
    onProgress?.({ step, done, unit: 'bytes', ...(total === undefined ? {} : { total }) } satisfies Progress);
  }
}

function connectionError(error: unknown, http: string, signal: AbortSignal | undefined): unknown {
  if (error instanceof HyperMeshError) return error;
  if (signal?.aborted === true)
    return new HyperMeshError('cancelled', 'The operation was cancelled.', { cause: error });
  return new HyperMeshError('node-not-running', `No node answers at ${http}.`, {
    hint: 'Start it with `hypermesh up --detach`; `hypermesh status` tells whether it runs.',
    cause: error,
  });
}
