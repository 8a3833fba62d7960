# Runs one program. ARGS: its path; `now`, or `ahead` of a run that gives its input later; the path of an example of its input, or nothing;
# the number of its environment variables, these as NAME=value; its arguments. Descriptor 3 leads to the node, and says only that a
# file is no program; it is closed before the program starts.
module HyperMeshWorker

Base.Experimental.@optlevel 0

using Main.HyperMeshJson: read_json, write_json

const TRACE_MAX = 40

function run(path::String, isahead::Bool, example::String, environment::Vector{String})
    tree = parse_file(path)
    tree isa String && refuse(tree)
    ccall(:close, Cint, (Cint,), 3)
    Core.eval(Base, :(PROGRAM_FILE = $path))
    for name in collect(keys(ENV))
        delete!(ENV, name)
    end
    for variable in environment
        name, value = split(variable, '='; limit = 2)
        ENV[name] = value
    end
    cd("/")
    try
        if isahead
            isfunction(tree) || wait_as_script(tree)
        end
        Base.include(Main, path)
        isahead && isfunction(tree) && Base.invokelatest(warm_up, example)
        Base.invokelatest(perform)
    catch error
        complain(error, catch_backtrace())
        finish(1)
    end
    finish(0)
end

"Ends as `exit`, but without finalizing what the kernel takes back anyway, which takes longer than a short program."
function finish(status::Int)
    try
        Base._atexit()
    finally
        ccall(:_exit, Cvoid, (Cint,), status)
    end
end

"The expressions of a file, or what the parser says of the first one that is none."
function parse_file(path::String)
    text = try
        read(path, String)
    catch error
        return sprint(showerror, error)
    end
    isvalid(text) || return "$path is not UTF-8"
    tree = Base.parse_input_line(text; filename = path)
    parts = tree isa Expr && tree.head === :toplevel ? tree.args : Any[tree]
    for part in parts
        part isa Expr && part.head in (:error, :incomplete) || continue
        says = part.args[1]
        return string(says isa AbstractString ? says : sprint(showerror, says))
    end
    return parts
end

function refuse(message::String)
    document = sprint(io -> write_json(io, Dict("invalid" => first(message, 2_000))))
    bytes = Vector{UInt8}(codeunits(document))
    while !isempty(bytes)
        written = ccall(:write, Cssize_t, (Cint, Ptr{UInt8}, Csize_t), 3, bytes, length(bytes))
        written > 0 || break
        bytes = bytes[written+1:end]
    end
    exit(0)
end

"Whether a file defines `main` by itself: it is loaded ahead of its input, which it does not read."
isfunction(parts::Vector{Any}) = any(defines_main, parts)
function defines_main(@nospecialize(part))
    part isa Expr || return false
    part.head === :macrocall && return any(defines_main, part.args)
    part.head in (:function, :(=)) || return false
    signature = part.args[1]
    while signature isa Expr && signature.head in (:where, :(::))
        signature = signature.args[1]
    end
    return signature isa Expr && signature.head === :call && signature.args[1] === :main
end

"A script runs when its input is there; the packages that it names are loaded before."
function wait_as_script(parts::Vector{Any})
    for part in parts
        part isa Expr && part.head in (:using, :import) || continue
        for name in part.args
            path = name isa Expr && name.head === :(:) ? name.args[1] : name
            path isa Expr && path.head === :. && path.args[1] isa Symbol && path.args[1] !== :. || continue
            try
                Base.require(Main, path.args[1])
            catch
                # The script says it again.
            end
        end
    end
    eof(stdin)
end

"Compiles what a call of `main` needs. With an example of its input, also what depends on what is in it."
function warm_up(example::String)
    hasmain() || return
    for type in (Dict{String,Any}, Vector{Any}, String, Int64, Float64, Bool, Nothing)
        hasmethod(Main.main, Tuple{type}) && precompile(Main.main, (type,))
    end
    precompile(read, (typeof(stdin),))
    precompile(finish, (Int,))
    silently() do
        try
            answer(identity, Vector{UInt8}("{\"a\":[1,2.5,\"b\",null,true]}"), stdout)
            isempty(example) || answer(Main.main, read(example), stdout)
        catch
            # It is the author's example; a run says what is wrong with its own input.
        end
    end
end

"What is printed meanwhile goes nowhere, through the same streams: other ones would compile other code."
function silently(work)
    files = map(stream -> reinterpret(Int32, Base._fd(stream)), (stdout, stderr))
    kept = map(file -> ccall(:dup, Cint, (Cint,), file), files)
    open("/dev/null", "w") do nowhere
        foreach(file -> ccall(:dup2, Cint, (Cint, Cint), fd(nowhere), file), files)
    end
    try
        work()
    finally
        flush(stdout)
        flush(stderr)
        foreach(kept, files) do copy, file
            ccall(:dup2, Cint, (Cint, Cint), copy, file)
            ccall(:close, Cint, (Cint,), copy)
        end
    end
end

hasmain() = isdefined(Main, :main) && Main.main isa Function && hasmethod(Main.main, Tuple{Any})

"A program that defines `main(input)` is a function of its input: what it prints is its log, what it returns its result."
perform() = hasmain() && answer(Main.main, read(stdin), stdout)

function answer(@nospecialize(main), input::Vector{UInt8}, result::IO)
    value = read_json(input)
    printed = stdout
    try
        redirect_stdout(stderr)
        value = main(value)
    finally
        flush(stderr)
        redirect_stdout(printed)
    end
    document = sprint(io -> write_json(io, value))
    write(result, document)
    flush(result)
end

"As `showerror` with a backtrace, but for a quarter of its time, which is that of compiling it."
function complain(@nospecialize(error), trace)
    while error isa LoadError
        error = error.error
    end
    showerror(stderr, error)
    for (count, frame) in enumerate(stacktrace(trace))
        # Here the worker begins, which was given on the command line.
        (count > TRACE_MAX || frame.file in (:none, Symbol("./none"))) && break
        print(stderr, "\n  at ", string(frame.func), " (", string(frame.file), ":", string(frame.line), ")")
    end
    println(stderr)
end

end

let path = string("/package/", popfirst!(ARGS)), isahead = popfirst!(ARGS) == "ahead", example = popfirst!(ARGS)
    environment = String[popfirst!(ARGS) for _ in 1:parse(Int, popfirst!(ARGS))]
    HyperMeshWorker.run(path, isahead, example, environment)
end
