import sys, time; sys.path.insert(0,"/work/main/tests")
from workers import on_workers
import cProfile, pstats, io
def f(settings):
    import test_loop, time
    before=set(sys.modules); s=time.time()
    p=cProfile.Profile(); p.enable()
    test_loop.train(settings)
    p.disable(); t=time.time()-s
    b=io.StringIO(); pstats.Stats(p,stream=b).sort_stats("cumtime").print_stats(45)
    return t, sorted(set(sys.modules)-before), b.getvalue()
def test_x(tiny_settings):
    for n in (1,2):
        s=time.time(); r=on_workers(n,f,tiny_settings); print(n, time.time()-s, r[0][0], len(r[0][1]), r[0][1][:60])
        print(r[0][2][:6000])
