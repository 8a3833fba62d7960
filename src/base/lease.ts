/** What can be held with `await using`: whoever grants leases by id. */
export interface Lender<Request, Options, Lease extends { readonly id: string }> {
  allocate(request: Request, options?: Options): Promise<Lease>;
  release(leaseId: string): Promise<void>;
}

/**
 * Allocates, and releases at the end of the block on every path:
 * `await using held = await hold(resources, request, { signal });`
 */
export async function hold<Request, Options, Lease extends { readonly id: string }>(
  lender: Lender<Request, Options, Lease>,
  request: Request,
  options?: Options,
): Promise<AsyncDisposable & { readonly lease: Lease }> {
  const lease = await lender.allocate(request, options);
  return { lease, [Symbol.asyncDispose]: () => lender.release(lease.id) };
}
